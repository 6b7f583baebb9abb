"""A proxy in front of a real Redis that loses connections when it is told to, and counts what passes."""

import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65536


class Relay:
    """Listens on the loopback and passes everything on, but for what its attributes say.

    Attributes:
        connections: made so far.
        requests: exchanges begun so far, lost ones included.
        lost_requests: so many of the next exchanges lose their connection before the server hears of them.
        lost_answers: so many of the next ones lose it after ``answer_bytes`` of the answer.
        answer_bytes: see there.
        on_request: called with each request before it is passed on.
    """

    def __init__(self, redis_socket: Path) -> None:
        self.connections = self.requests = self.lost_requests = self.lost_answers = self.answer_bytes = 0
        self.on_request: Callable[[], None] = lambda: None
        self._redis_socket = redis_socket
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)

    @property
    def url(self) -> str:
        """For a client."""
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}"

    def hang_up(self) -> None:
        """Close all connections, as a proxy does with idle ones."""
        with self._lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._threads.append(threading.Thread(target=self._accept))
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self.hang_up()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            with suppress(TimeoutError):
                client, _ = self._listener.accept()
                self.connections += 1
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(5)
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            with self._lock:
                self._open.add(client)
            try:
                server.settimeout(5)
                server.connect(str(self._redis_socket))
                self._pass_on(client, server)
            finally:
                with self._lock:
                    self._open.discard(client)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        asking, left = False, None  # left: bytes of the answer that still pass
        for source in self._readable(client, server):
            data = source.recv(CHUNK_BYTES)
            if not data:
                return
            if source is client:
                if not asking:  # a request's first part
                    asking = True
                    if not self._begin():
                        return
                    left = self._allowance()
                server.sendall(data)
            else:
                asking = False
                client.sendall(data[:left])
                if left is not None:
                    left -= len(data)
                    if left <= 0:
                        return

    def _readable(self, *sockets: socket.socket) -> Iterator[socket.socket]:
        with selectors.DefaultSelector() as selector:
            for sock in sockets:
                selector.register(sock, selectors.EVENT_READ, sock)
            while not self._over.is_set():
                for key, _ in selector.select(0.05):
                    yield key.data

    def _begin(self) -> bool:
        """Whether a request is passed on."""
        with self._lock:
            self.requests += 1
            lost = self.lost_requests > 0
            self.lost_requests -= lost
        self.on_request()
        return not lost

    def _allowance(self) -> int | None:
        with self._lock:
            if self.lost_answers == 0:
                return None
            self.lost_answers -= 1
            return self.answer_bytes
