"""The child process that decodes one untrusted file and exits. Started by :mod:`fastervlm_video.media.sandbox`.

Everything that must be imported or opened is, before the file's first byte is read; then the process
gives up opening files and sockets, gaining privileges, writing to files, and more memory and processor time
than the job allows. Where the kernel has filters of system calls, it gives up all calls but those that decoding
needs, too: it can remove, rename, signal and start nothing. Without them only the limits hold, and of these the one
on processes not for root.
"""

import contextlib
import ctypes
import logging
import math
import os
import resource
import socket
import stat
import threading
from typing import Any, cast

from fastervlm_video.config import FrameResize, FrameSampling, MediaLimits, Medium, Tiling
from fastervlm_video.errors import CorruptMediaError, FasterVLMError
from fastervlm_video.media import _seccomp, _wire
from fastervlm_video.media.decode import decode_video
from fastervlm_video.media.frames import FrameBatch
from fastervlm_video.media.pictures import decode_picture
from fastervlm_video.media.sources import ByteReader, PositionedFile

__all__ = ["main"]

logger = logging.getLogger(__name__)

_PR_SET_NO_NEW_PRIVS = 38
_STANDARD_STREAMS = (0, 1, 2)
_CPU_GRACE_SECONDS = 5
_EXIT_ORPHANED = 3
_SMALLEST_GIF = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")

# Two pixels each; the JPEG says in its EXIF data that it lies on its side.
_SMALLEST_JPEG = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffe100224578696600004d4d002a000000080001011200030000000100060000"
    "00000000ffdb004300ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
    "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffc0000b080002000101011100ffc40014000100000000"
    "000000000000000000000003ffc40014100100000000000000000000000000000000ffda0008010100003f0037ffd9"
)
_SMALLEST_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000020800000000bceae9fb0000000c4944415478da6360606000000004"
    "0001c8eaebf90000000049454e44ae426082"
)
_SMALLEST_WEBP = bytes.fromhex("524946461a000000574542505650384c0e0000002f00400000071011fd0f4444ff03")


def main(descriptor: int) -> None:
    """Serve one job on the socket ``descriptor``, then return."""
    with socket.socket(fileno=descriptor) as sock:
        _warm_up()
        _silence()
        sock.sendall(_wire.READY)
        received = _receive_job(sock)
        if received is None:
            return
        job, file = received
        reader = _reader(file)
        threading.Thread(target=_exit_when_orphaned, args=(sock,), daemon=True).start()
        _lock_down(job.limits)
        # A parent that has gone, or has had enough, closes its end: nobody is left to tell.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            _serve(sock, job, reader)


def _warm_up() -> None:
    """Load what is otherwise loaded on first use, when nothing can be opened any more."""
    decode_video(_SMALLEST_GIF, FrameSampling(1), resize=FrameResize(shortest_edge=2, crop=(1, 1)))
    for picture in (_SMALLEST_JPEG, _SMALLEST_PNG, _SMALLEST_WEBP):
        decode_picture(picture, resize=FrameResize(size=(2, 2)), tiling=Tiling(2, ((2, 4),)))


def _silence() -> None:
    """Whatever a library prints about a hostile file goes nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in _STANDARD_STREAMS:
        os.dup2(null, stream)
    os.close(null)


def _receive_job(sock: socket.socket) -> tuple[_wire.Job, int] | None:
    """The job and the file's descriptor; None if the parent closed the socket instead."""
    data, descriptors, _, _ = socket.recv_fds(sock, _wire.MAX_HEADER_BYTES, 1)
    while data and len(data) < _wire.LENGTH.size + _wire.LENGTH.unpack_from(data.ljust(_wire.LENGTH.size, b"\0"))[0]:
        piece = sock.recv(_wire.MAX_HEADER_BYTES)
        data = data + piece if piece else b""
    if not data or not descriptors:
        return None
    return _wire.parse_job(data[_wire.LENGTH.size :]), descriptors[0]


def _exit_when_orphaned(sock: socket.socket) -> None:
    """End with the parent, which sends nothing after the job: when reading returns, it is gone.

    The kernel's parent-death signal would not do: it fires when the parent's *thread* ends.
    """
    with contextlib.suppress(OSError):
        sock.recv(1)
    os._exit(_EXIT_ORPHANED)


def _lock_down(limits: MediaLimits) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CPU: math.ceil(limits.timeout_seconds) + _CPU_GRACE_SECONDS,
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_NPROC: 0,
        # No new descriptor can be made; those that are open keep working.
        resource.RLIMIT_NOFILE: 0,
    }
    for kind, bound in bounds.items():
        hard = resource.getrlimit(kind)[1]
        value = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (value, value))
    if _seccomp.is_available():
        _seccomp.allow_decoding_only()


def _serve(sock: socket.socket, job: _wire.Job, reader: ByteReader) -> None:
    header: dict[str, Any]
    try:
        batch = _decode(job, reader)
    except FasterVLMError as error:
        sock.sendall(_wire.pack(_wire.error_header(error)))
    except Exception as error:
        # A fault of ours that this file brings out: it must reach the parent, which is where logs are read.
        logger.debug("decoding failed", exc_info=True)
        unexpected = CorruptMediaError(f"the decoder failed on this file: {type(error).__name__}: {error}")
        sock.sendall(_wire.pack(_wire.error_header(unexpected)))
    else:
        header = _wire.reply_header(batch)
        sock.sendall(_wire.pack(header))
        sock.sendall(batch.frames_thwc_u8.data)


def _decode(job: _wire.Job, source: ByteReader) -> FrameBatch:
    if job.medium is Medium.IMAGE:
        return decode_picture(source, limits=job.limits, resize=job.resize, tiling=job.tiling)
    return decode_video(source, job.sampling, limits=job.limits, resize=job.resize, tiling=job.tiling)


def _reader(file: int) -> ByteReader:
    if stat.S_ISREG(os.fstat(file).st_mode):
        return PositionedFile(file)
    return cast("ByteReader", os.fdopen(file, "rb", buffering=0))
