"""A server on the loopback that answers Redis requests with whatever it was told to."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Behaviour = Callable[[socket.socket, threading.Event], None]


def says(answer: bytes) -> Behaviour:
    """Answers every request with the same bytes."""

    def behave(connection: socket.socket, over: threading.Event) -> None:
        while not over.is_set() and connection.recv(65536):
            connection.sendall(answer)

    return behave


def floods(opening: bytes, filler: bytes) -> Behaviour:
    """Answers with an opening and then more and more."""

    def behave(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(opening)
        while not over.is_set():
            connection.sendall(filler)

    return behave


def drips(opening: bytes, pause_seconds: float) -> Behaviour:
    """Answers with an opening and then one byte now and then."""

    def behave(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(opening)
        while not over.wait(pause_seconds):
            connection.sendall(b"x")

    return behave


@contextmanager
def lying_server(behaviour: Behaviour) -> Iterator[str]:
    """Its address, while it runs."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            behaviour(connection, over)

    def accept(listener: socket.socket) -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                connection.settimeout(5)
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        acceptor = threading.Thread(target=accept, args=(listener,))
        acceptor.start()
        try:
            yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            acceptor.join()
            for thread in threads:
                thread.join()
