"""What the process that decodes untrusted media may still ask of the kernel: Linux's seccomp, without a library for it.

When everything is imported and opened, decoding takes and gives back memory, reads its file, and writes to its
parent. A filter lets these calls through and answers every other one (files, sockets, signals, processes, threads)
with "not permitted"::

    is it this machine's kind of call?  no ─▶ the process is killed
    is its number in the table?        yes ─▶ allowed
                                        no ─▶ EPERM
"""

import ctypes
import errno
import os
import platform
import struct

__all__ = ["allow_decoding_only", "is_available"]

_NUMBERS = {
    "read": (0, 63),
    "pread64": (17, 67),
    "lseek": (8, 62),
    "close": (3, 57),
    "write": (1, 64),
    "sendto": (44, 206),  # on sockets that there are
    "recvfrom": (45, 207),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "brk": (12, 214),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getrandom": (318, 278),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
"""System calls by their numbers on each of the machines below."""
_MACHINES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}
"""Column of the table, the kernel's name for the machine (``AUDIT_ARCH_…``), and the number of ``seccomp`` itself."""

_SET_FILTER, _GET_ACTION_AVAILABLE = 1, 2
_ALL_THREADS = 1
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_AT_NUMBER, _AT_MACHINE = 0, 4  # in the kernel's `struct seccomp_data`
_KILL_PROCESS, _ALLOW, _FAIL_WITH = 0x80000000, 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    """The kernel's ``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def is_available() -> bool:
    """Whether this machine is in the table, and its kernel has filters."""
    action = ctypes.c_uint32(_KILL_PROCESS)
    return platform.machine() in _MACHINES and _seccomp(_GET_ACTION_AVAILABLE, 0, ctypes.byref(action)) == 0


def allow_decoding_only() -> None:
    """Put the filter before all threads of this process, for good. It must have given up new privileges already.

    Raises:
        OSError: the kernel refuses.
    """
    steps = _filter()
    program = _Program(len(steps), b"".join(steps))
    if _seccomp(_SET_FILTER, _ALL_THREADS, ctypes.byref(program)) != 0:
        raise OSError(ctypes.get_errno(), f"no filter of system calls: {os.strerror(ctypes.get_errno())}")


def _filter() -> list[bytes]:
    """The steps of the program; a jump says how many to leave out if equal, and if not."""
    column, machine, _ = _MACHINES[platform.machine()]
    numbers = sorted(both[column] for both in _NUMBERS.values())
    return [
        _step(_LOAD, _AT_MACHINE),
        _step(_JUMP_IF_EQUAL, machine, if_equal=1),
        _step(_RETURN, _KILL_PROCESS),
        _step(_LOAD, _AT_NUMBER),
        *(_step(_JUMP_IF_EQUAL, number, if_equal=len(numbers) - at) for at, number in enumerate(numbers)),
        _step(_RETURN, _FAIL_WITH | errno.EPERM),
        _step(_RETURN, _ALLOW),
    ]


def _step(code: int, value: int, *, if_equal: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_equal, 0, value)


def _seccomp(operation: int, flags: int, argument: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.c_long(_MACHINES[platform.machine()][2])
    return int(libc.syscall(number, operation, flags, argument))
