"""What a process may still do behind the filter: it is put before a real one, which then tries."""

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastervlm_video.config import FrameSampling
from fastervlm_video.media import SandboxedDecoder, _seccomp, decode_video, write_video
from tests.media.videos import numbered

ROOT = Path(__file__).parents[2]
TRIES = """
import ctypes, json, os, socket, sys, threading
from fastervlm_video.media import _seccomp

victim, parent = sys.argv[1], os.getppid()
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)  # no new privileges
there, known = os.pipe(), os.open(victim, os.O_RDONLY)


def libc_call(name, *arguments):
    def call():
        if getattr(libc, name)(*arguments) == -1:
            raise OSError(ctypes.get_errno(), name)
    return call


tries = {
    "open": lambda: os.open(victim, os.O_RDONLY),
    "create": lambda: os.open(victim + ".new", os.O_CREAT | os.O_WRONLY),
    "stat": lambda: os.stat(victim),
    "unlink": lambda: os.unlink(victim),
    "rename": lambda: os.rename(victim, victim + ".moved"),
    "link": lambda: os.link(victim, victim + ".link"),
    "mkdir": lambda: os.mkdir(victim + ".folder"),
    "chmod": lambda: os.chmod(victim, 0o777),
    "truncate": lambda: os.ftruncate(known, 0),
    "listdir": lambda: os.listdir("/"),
    "chdir": lambda: os.chdir("/tmp"),
    "socket": lambda: socket.socket(),
    "socketpair": lambda: socket.socketpair(),
    "pipe": os.pipe,
    "duplicate": lambda: os.dup(known),
    "kill": lambda: os.kill(parent, 0),
    "kill itself": lambda: os.kill(os.getpid(), 0),
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 1),
    "limits": libc_call("setrlimit", 4, (ctypes.c_ulong * 2)()),
    "ptrace": libc_call("ptrace", 16, parent, None, None),
    "memory of another": libc_call("process_vm_readv", parent, None, 0, None, 0, 0),
    "mount": libc_call("mount", b"none", b"/mnt", b"tmpfs", 0, None),
    "namespaces": libc_call("unshare", 0x10000000),
}
found, wake, done = {}, threading.Event(), threading.Event()


def attempt(name):
    try:
        tries[name]()
    except OSError as error:
        return error.errno
    return "done"


def in_a_thread_that_is_there():
    wake.wait()
    found["unlink in a thread"] = attempt("unlink")
    done.set()


threading.Thread(target=in_a_thread_that_is_there, daemon=True).start()
_seccomp.allow_decoding_only()
found |= {name: attempt(name) for name in tries}
wake.set()
done.wait(30)
try:
    threading.Thread(target=print).start()
except RuntimeError:
    found["thread"] = "cannot be started"
os.write(there[1], b"still")
found["what is open"] = [os.read(there[0], 5).decode(), os.pread(known, 3, 0).decode(), len(bytearray(10**8))]
os.write(1, json.dumps(found).encode())
os._exit(0)
"""

needs_filters = pytest.mark.skipif(not _seccomp.is_available(), reason="this kernel cannot filter system calls")


@needs_filters
def test_nothing_is_left_but_what_is_open(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("abcdef")
    command = [sys.executable, "-c", TRIES, str(victim)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found.pop("what is open") == ["still", "abc", 10**8]
    assert found.pop("thread") == "cannot be started"
    assert "unlink in a thread" in found
    assert len(found) == 26
    assert found == dict.fromkeys(found, errno.EPERM)
    assert victim.read_text() == "abcdef"
    assert os.listdir(tmp_path) == ["victim"]


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libsvtav1", "yuv420p"),
        ("b.webm", "libvpx-vp9", "yuv420p"),
        ("c.ts", "mpeg2video", "yuv420p"),
        ("d.gif", "gif", "rgb8"),
        ("e.mkv", "ffv1", "bgr0"),
    ],
)
def test_decoders_need_nothing_more(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    write_video(tmp_path / name, numbered(12), codec=codec, pix_fmt=pix_fmt)
    with SandboxedDecoder(max_spare=0) as decoder:
        batch = decoder.decode(tmp_path / name, FrameSampling(3))
    assert np.array_equal(batch.frames_thwc_u8, decode_video(tmp_path / name, FrameSampling(3)).frames_thwc_u8)


def test_without_filters_it_works_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_video(tmp_path / "a.mp4", numbered(3))
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with caplog.at_level(logging.WARNING), SandboxedDecoder(max_spare=0) as decoder:
        assert decoder.decode(tmp_path / "a.mp4", FrameSampling(1)).num_frames == 1
    assert "system calls cannot be filtered here" in caplog.text
