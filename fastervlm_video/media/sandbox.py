"""Decoding untrusted videos and pictures in a child process that can be killed and has given up nearly all rights.

libav and PIL parse hostile bytes in C: a file may crash them, hang them or take them over. So each file gets a
process of its own, which never sees another one's bytes and whose death is one failed job. A spare
process, everything imported, waits for the next job, so that a job does not wait for an interpreter.

::

    parent                                  child (python -I, empty environment)
      spawn spare ------------------------>   import, warm up, "ready"
      decode(): job + descriptor --------->   give up rights, decode
      check sizes, read pixels <-----------   header + pixels
      kill, reap, spawn the next spare

What it gives up are new files, sockets and privileges, memory and time beyond the job's, and, where Linux can filter
system calls (``_seccomp.py``; x86-64 and 64-bit ARM), all that decoding does not need. It still computes what it likes,
reads the one file, and writes to its parent, which believes nothing unchecked.
"""

import concurrent.futures
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import numpy as np

from fastervlm_video.config import FrameResize, FrameSampling, MediaLimits, Medium, Tiling
from fastervlm_video.errors import (
    CorruptMediaError,
    InvalidRequestError,
    MediaLimitError,
    UnavailableError,
)
from fastervlm_video.media import _seccomp, _wire
from fastervlm_video.media.frames import FrameBatch
from fastervlm_video.media.sources import check_size, open_regular_file
from fastervlm_video.media.tiling import check_views_match

__all__ = ["SandboxedDecoder"]

logger = logging.getLogger(__name__)

START_TIMEOUT_SECONDS = 60.0
"""How long a fresh child may take to import what it needs."""
_TIMEOUT_GRACE_SECONDS = 0.5
"""The child enforces the time limit too, with a better message; it gets this much longer to say so."""
_CANCEL_POLL_SECONDS = 0.05
_REAP_SECONDS = 5.0

_BOOTSTRAP = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from fastervlm_video.media._worker import main; main(int(sys.argv[2]))"
)
"""``-I`` keeps the environment and the current folder out of the import path; the parent's path is handed over."""

_CLEAN_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class _ChildGoneError(Exception):
    """The child closed its end of the socket."""


class _Child:
    """One decoder process, from spawn to reaping. Serves at most one job."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair()
        path = [os.path.abspath(entry) for entry in sys.path]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - no shell, no foreign words
                [sys.executable, "-I", "-c", _BOOTSTRAP, json.dumps(path), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=_CLEAN_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError:
            self._sock.close()
            raise
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def await_ready(self, cancelled: threading.Event | None) -> bool:
        """Whether it came up; False if it died or took too long."""
        try:
            deadline = time.monotonic() + START_TIMEOUT_SECONDS
            return bytes(self._receive(len(_wire.READY), deadline, cancelled)) == _wire.READY
        except (_ChildGoneError, TimeoutError):
            return False

    def send(self, job: _wire.Job, descriptor: int) -> None:
        """Hand over the job."""
        try:
            _wire.send_job(self._sock, job, descriptor)
        except OSError as error:
            raise _ChildGoneError from error

    def receive(self, job: _wire.Job, cancelled: threading.Event | None) -> FrameBatch:
        """Wait for the result, check it and read it."""
        deadline = time.monotonic() + job.limits.timeout_seconds + _TIMEOUT_GRACE_SECONDS
        (length,) = _wire.LENGTH.unpack(self._receive(_wire.LENGTH.size, deadline, cancelled))
        if length > _wire.MAX_HEADER_BYTES:
            raise CorruptMediaError(f"the decoder answered nonsense about this file: a header of {length} bytes")
        reply = _wire.parse_reply(bytes(self._receive(length, deadline, cancelled)), job)
        frames = np.empty(reply.shape, np.uint8)
        self._receive_into(frames.reshape(-1).data, deadline, cancelled)
        return FrameBatch(frames, reply.pts_seconds, reply.info, reply.views_per_frame)

    def kill(self) -> int:
        """End it, whatever it is doing, and reap it. Returns its exit status as :mod:`subprocess` has it."""
        self._process.kill()
        status = self._process.wait()
        self._sock.close()
        return status

    def exit_status(self) -> int:
        """How it ended, after it closed its socket."""
        try:
            return self._process.wait(_REAP_SECONDS)
        except subprocess.TimeoutExpired:
            return self.kill()

    def _receive(self, size: int, deadline: float, cancelled: threading.Event | None) -> bytearray:
        held = bytearray(size)
        self._receive_into(memoryview(held), deadline, cancelled)
        return held

    def _receive_into(self, view: memoryview, deadline: float, cancelled: threading.Event | None) -> None:
        while view:
            if cancelled is not None and cancelled.is_set():
                raise concurrent.futures.CancelledError
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._sock.settimeout(left if cancelled is None else min(left, _CANCEL_POLL_SECONDS))
            try:
                count = self._sock.recv_into(view)
            except TimeoutError:
                continue
            except OSError as error:
                raise _ChildGoneError from error
            if not count:
                raise _ChildGoneError
            view = view[count:]


class SandboxedDecoder:
    """Decodes videos and pictures in child processes; safe to call from many threads. Linux only.

    Args:
        max_spare: how many children wait, ready, for the next job.
        on_start: called with the child's process id when it has been given a job.

    Example::

        with SandboxedDecoder() as decoder:
            batch = decoder.decode("clip.mp4", FrameSampling(8), resize=FrameResize(shortest_edge=224))
    """

    def __init__(self, *, max_spare: int = 1, on_start: Callable[[int], None] | None = None) -> None:
        if max_spare < 0:
            raise InvalidRequestError(f"max_spare must not be negative, got {max_spare}")
        self._max_spare = max_spare
        self._on_start = on_start
        self._lock = threading.Lock()
        self._spares: list[_Child] = []
        self._busy: set[_Child] = set()
        self._closed = False
        if not _seccomp.is_available():
            logger.warning("system calls cannot be filtered here: decoder processes are held by limits alone")
        self._refill()

    def decode(
        self,
        source: str | os.PathLike[str] | int | bytes,
        sampling: FrameSampling,
        *,
        limits: MediaLimits = MediaLimits(),  # noqa: B008 - frozen
        resize: FrameResize | None = None,
        medium: Medium = Medium.VIDEO,
        tiling: Tiling | None = None,
        cancelled: threading.Event | None = None,
    ) -> FrameBatch:
        """As ``decode_video`` or ``decode_picture`` of this package, in a child process. Blocks.

        Args:
            source: a path, an open file descriptor (left open, its offset unused), or the encoded bytes.
            sampling: how many frames; ignored if the file is a picture.
            limits: enforced by the child and, from outside, on the child.
            resize: applied to each frame in the child.
            medium: what the file is decoded as; :func:`~fastervlm_video.media.sniff_medium` says what it is.
            tiling: how further views are cut out of each frame in the child.
            cancelled: once set, the child is killed and the call ends.

        Raises:
            VideoNotFoundError: the path names nothing that can be opened.
            MediaError: the file is at fault; see :func:`~fastervlm_video.media.decode_video` and
                :func:`~fastervlm_video.media.decode_picture`. A child that crashes is a CorruptMediaError,
                one that takes too long or needs too much memory is a MediaLimitError.
            InvalidRequestError: with a ``tiling``, ``resize`` does not make any picture as large as a tile.
            UnavailableError: no child can be started, or the decoder has been closed.
            concurrent.futures.CancelledError: ``cancelled`` was set.
        """
        job = _wire.Job(sampling, limits, resize, medium, tiling)
        if job.num_pictures > limits.max_num_frames:
            raise MediaLimitError(f"{job.num_pictures} frames asked for, more than the {limits.max_num_frames} allowed")
        check_views_match(resize, tiling)
        with _descriptor_of(source, limits) as descriptor:
            child = self._start_job(job, descriptor, cancelled)
            try:
                if self._on_start is not None:
                    self._on_start(child.pid)
                self._refill()
                return child.receive(job, cancelled)
            except TimeoutError as error:
                raise MediaLimitError(f"decoding took longer than the {limits.timeout_seconds:g} s allowed") from error
            except _ChildGoneError as error:
                raise self._why_gone(child, job) from error
            except InvalidRequestError as error:
                raise CorruptMediaError(f"the decoder answered nonsense about this file: {error}") from error
            finally:
                self._retire(child)

    def close(self) -> None:
        """Kill every child, at work or waiting. Jobs at work raise UnavailableError."""
        with self._lock:
            self._closed = True
            spares, self._spares = self._spares, []
            busy = list(self._busy)
        for child in spares:
            child.kill()
        for child in busy:
            # Its own thread reaps it.
            os.kill(child.pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start_job(self, job: _wire.Job, descriptor: int, cancelled: threading.Event | None) -> _Child:
        """A child that has been given the job: a spare, or a fresh one if there is none or it has died."""
        for fresh in (False, True):
            child = self._take(fresh=fresh)
            try:
                if child.await_ready(cancelled):
                    child.send(job, descriptor)
                    return child
            except _ChildGoneError:
                pass
            except BaseException:
                self._retire(child)
                raise
            self._retire(child)
            logger.warning("a decoder process ended before it was given a file")
        raise UnavailableError("no decoder process could be started; see its error output above")

    def _take(self, *, fresh: bool) -> _Child:
        with self._lock:
            if self._closed:
                raise UnavailableError("this decoder has been closed")
            child = None if fresh or not self._spares else self._spares.pop()
            if child is None:
                child = _spawn()
            self._busy.add(child)
            return child

    def _refill(self) -> None:
        with self._lock:
            while not self._closed and len(self._spares) < self._max_spare:
                self._spares.append(_spawn())

    def _retire(self, child: _Child) -> None:
        with self._lock:
            self._busy.discard(child)
        child.kill()

    def _why_gone(self, child: _Child, job: _wire.Job) -> Exception:
        status = child.exit_status()
        if self._closed:
            return UnavailableError("this decoder has been closed")
        if status == -signal.SIGXCPU:
            return MediaLimitError(f"decoding took more than the {job.limits.timeout_seconds:g} s of processor allowed")
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        logger.warning("the decoder process crashed on a file (%s)", how)
        return CorruptMediaError(f"the decoder crashed on this file ({how}); it is damaged or malicious")


def _spawn() -> _Child:
    try:
        return _Child()
    except OSError as error:
        raise UnavailableError(f"no decoder process could be started: {error}") from error


@contextmanager
def _descriptor_of(source: str | os.PathLike[str] | int | bytes, limits: MediaLimits) -> Iterator[int]:
    """An open descriptor of the file, no larger than allowed."""
    if isinstance(source, int):
        status = os.fstat(source)
        if stat.S_ISREG(status.st_mode):
            check_size(status.st_size, limits)
        yield source
        return
    if isinstance(source, bytes):
        check_size(len(source), limits)
        descriptor = os.memfd_create("media")
    else:
        descriptor = open_regular_file(source)
    try:
        if isinstance(source, bytes):
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(source)
        check_size(os.fstat(descriptor).st_size, limits)
        yield descriptor
    finally:
        os.close(descriptor)
