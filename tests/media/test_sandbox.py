"""Crashes and hangs are real ones: signals sent to the child, and a video whose bytes never come."""

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fastervlm_video.config import FrameResize, FrameSampling, MediaLimits, Medium, Tiling
from fastervlm_video.errors import (
    CorruptMediaError,
    FasterVLMError,
    InvalidRequestError,
    MediaLimitError,
    NoVideoStreamError,
    UnavailableError,
    UnsupportedMediaError,
    VideoNotFoundError,
)
from fastervlm_video.media import SandboxedDecoder, _seccomp, decode_picture, decode_video, write_video
from tests.media.stills import HEIGHT, WIDTH, drawing, encoded, every_kind, turned
from tests.media.videos import FPS, numbered, numbers_of, spread, write_sound

FRAMES = 60
LIVENESS_SECONDS = 60.0
"""Long past anything that works; only something that hangs reaches it."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, numbered(FRAMES), fps=FPS, gop_size=10)
    return path


@pytest.fixture
def decoder() -> Iterator[SandboxedDecoder]:
    with SandboxedDecoder() as opened:
        yield opened


@pytest.fixture
def never() -> Iterator[int]:
    """The reading end of a pipe that nobody writes to."""
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


def children() -> set[int]:
    """This process's children, zombies included; not multiprocessing's own, which stays once a test made it start."""
    tasks = Path(f"/proc/{os.getpid()}/task")
    pids = {int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()}
    return {pid for pid in pids if b"multiprocessing.resource_tracker" not in _command_line(pid)}


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""  # it has just gone


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIVENESS_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_the_same_frames_as_in_process(decoder: SandboxedDecoder, clip: Path) -> None:
    resize = FrameResize(shortest_edge=40, crop=(40, 40))
    ours = decoder.decode(clip, FrameSampling(8), resize=resize)
    theirs = decode_video(clip, FrameSampling(8), resize=resize)
    assert np.array_equal(ours.frames_thwc_u8, theirs.frames_thwc_u8)
    assert (ours.pts_seconds, ours.info) == (theirs.pts_seconds, theirs.info)
    assert ours.frames_thwc_u8.flags.c_contiguous


def test_path_descriptor_and_bytes(decoder: SandboxedDecoder, clip: Path) -> None:
    descriptor = os.open(clip, os.O_RDONLY)
    try:
        os.lseek(descriptor, 77, os.SEEK_SET)
        for source in (str(clip), clip, descriptor, clip.read_bytes()):
            assert numbers_of(decoder.decode(source, FrameSampling(8)).frames_thwc_u8) == spread(FRAMES, 8)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 77
    finally:
        os.close(descriptor)


def test_a_pipe_is_read_to_its_end(decoder: SandboxedDecoder, clip: Path) -> None:
    reading, writing = os.pipe()
    data = clip.read_bytes()

    def feed() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(data)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        fed = pool.submit(feed)
        batch = decoder.decode(reading, FrameSampling(3))
        fed.result()
    os.close(reading)
    assert numbers_of(batch.frames_thwc_u8) == spread(FRAMES, 3)


def test_each_job_has_a_process_of_its_own(clip: Path) -> None:
    pids: list[int] = []
    with SandboxedDecoder(on_start=pids.append) as decoder:
        for _ in range(3):
            decoder.decode(clip, FrameSampling(1))
    assert len(set(pids)) == 3


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda clip: b"", UnsupportedMediaError),
        (lambda clip: b"not a video" * 100, UnsupportedMediaError),
        (lambda clip: clip.read_bytes()[:3000], CorruptMediaError),
        (lambda clip: clip.with_name("nothing.mp4"), VideoNotFoundError),
        (lambda clip: clip.parent, UnsupportedMediaError),
    ],
    ids=["empty", "text", "truncated", "missing", "folder"],
)
def test_errors_arrive_as_in_process_and_the_next_job_works(
    decoder: SandboxedDecoder, clip: Path, make: Callable[[Path], Path | bytes], expected: type[FasterVLMError]
) -> None:
    source = make(clip)
    with pytest.raises(expected) as theirs:
        decode_video(source, FrameSampling(2))
    with pytest.raises(expected) as ours:
        decoder.decode(source, FrameSampling(2))
    assert type(ours.value) is expected
    assert str(ours.value) == str(theirs.value)
    assert decoder.decode(clip, FrameSampling(2)).num_frames == 2


TILING = Tiling(16, ((16, 32), (32, 16), (32, 32)))
SQUARE = FrameResize(size=(16, 16))
PICTURES = {**every_kind(), **{f"{kind} turned": turned(kind, 6) for kind in ("JPEG", "PNG", "WEBP")}}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_as_in_process(decoder: SandboxedDecoder, name: str) -> None:
    """Of every kind, by a child that can open no file any more and so has all that it takes."""
    ours = decoder.decode(PICTURES[name], FrameSampling(65), resize=SQUARE, medium=Medium.IMAGE, tiling=TILING)
    theirs = decode_picture(PICTURES[name], resize=SQUARE, tiling=TILING)
    assert np.array_equal(ours.frames_thwc_u8, theirs.frames_thwc_u8)
    assert (ours.pts_seconds, ours.info) == (theirs.pts_seconds, theirs.info)
    assert ours.views_per_frame == theirs.views_per_frame > 1


def test_pictures_by_path_descriptor_and_pipe(decoder: SandboxedDecoder, tmp_path: Path) -> None:
    path = tmp_path / "no extension"
    path.write_bytes(PICTURES["webp lossless"])
    reading, writing = os.pipe()
    os.write(writing, PICTURES["webp lossless"])
    os.close(writing)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for source in (str(path), path, descriptor, reading):
            batch = decoder.decode(source, FrameSampling(1), medium=Medium.IMAGE)
            assert np.array_equal(batch.frames_thwc_u8, np.asarray(drawing())[None])
    finally:
        os.close(descriptor)
        os.close(reading)


def test_a_video_in_views(decoder: SandboxedDecoder, clip: Path) -> None:
    ours = decoder.decode(clip, FrameSampling(5), resize=SQUARE, tiling=TILING)
    theirs = decode_video(clip, FrameSampling(5), resize=SQUARE, tiling=TILING)
    assert np.array_equal(ours.frames_thwc_u8, theirs.frames_thwc_u8)
    assert (ours.pts_seconds, ours.info) == (theirs.pts_seconds, theirs.info)
    assert (ours.views_per_frame, ours.num_pictures) == (theirs.views_per_frame, 5)


def test_a_file_is_decoded_only_as_what_it_is_said_to_be(decoder: SandboxedDecoder, clip: Path) -> None:
    with pytest.raises(UnsupportedMediaError, match="JPEG, PNG and WebP"):
        decoder.decode(clip, FrameSampling(1), medium=Medium.IMAGE)
    with pytest.raises(UnsupportedMediaError):
        decoder.decode(PICTURES["png"], FrameSampling(1))


def test_errors_about_pictures_arrive_as_in_process_and_the_next_job_works(decoder: SandboxedDecoder) -> None:
    small = MediaLimits(max_pixels_per_frame=HEIGHT * WIDTH - 1)
    cases: list[tuple[bytes, MediaLimits, type[FasterVLMError]]] = [
        (PICTURES["jpeg"][:600], MediaLimits(), CorruptMediaError),
        (PICTURES["webp"][:-20], MediaLimits(), CorruptMediaError),
        (b"GIF89a" + bytes(50), MediaLimits(), UnsupportedMediaError),
        (b"", MediaLimits(), UnsupportedMediaError),
        (PICTURES["png"], small, MediaLimitError),
        (PICTURES["webp"], small, MediaLimitError),
    ]
    for data, limits, expected in cases:
        with pytest.raises(expected) as theirs:
            decode_picture(data, limits=limits)
        with pytest.raises(expected) as ours:
            decoder.decode(data, FrameSampling(1), limits=limits, medium=Medium.IMAGE)
        assert (type(ours.value), str(ours.value)) == (type(theirs.value), str(theirs.value))
        assert decoder.decode(PICTURES["png"], FrameSampling(1), medium=Medium.IMAGE).num_frames == 1


@pytest.mark.parametrize("resize", [None, FrameResize(shortest_edge=16), FrameResize(size=(16, 15))])
def test_views_of_two_sizes_are_refused_before_a_child_is_used(resize: FrameResize | None) -> None:
    pids: list[int] = []
    with (
        SandboxedDecoder(max_spare=0, on_start=pids.append) as decoder,
        pytest.raises(InvalidRequestError, match="tiles of 16x16"),
    ):
        decoder.decode(PICTURES["png"], FrameSampling(1), resize=resize, medium=Medium.IMAGE, tiling=TILING)
    assert not pids


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_memory_limit_of_a_picture(decoder: SandboxedDecoder, kind: str) -> None:
    options = {"WEBP": {"method": 0}, "PNG": {"compress_level": 1}}.get(kind, {})
    data = encoded(drawing(10, 10).resize((8000, 3000), 0), kind, **options)
    for megabytes in (400, 2000):
        limits = MediaLimits(memory_bytes=megabytes * 1024**2)
        if megabytes == 2000:
            batch = decoder.decode(data, FrameSampling(1), limits=limits, resize=SQUARE, medium=Medium.IMAGE)
            assert batch.info.width == 8000
        else:
            with pytest.raises(MediaLimitError, match=f"more memory than the {megabytes * 1024**2} bytes"):
                decoder.decode(data, FrameSampling(1), limits=limits, resize=SQUARE, medium=Medium.IMAGE)


def test_a_picture_that_never_comes_runs_into_the_time_limit(never: int, decoder: SandboxedDecoder) -> None:
    with pytest.raises(MediaLimitError, match=r"longer than the 0\.3 s"):
        decoder.decode(never, FrameSampling(1), limits=MediaLimits(timeout_seconds=0.3), medium=Medium.IMAGE)


def test_cancelling_a_picture(never: int) -> None:
    cancelled = threading.Event()
    with (
        SandboxedDecoder(on_start=lambda pid: cancelled.set()) as decoder,
        pytest.raises(concurrent.futures.CancelledError),
    ):
        decoder.decode(never, FrameSampling(1), medium=Medium.IMAGE, cancelled=cancelled)


def test_sound_only(decoder: SandboxedDecoder, tmp_path: Path) -> None:
    write_sound(tmp_path / "only.mp4")
    with pytest.raises(NoVideoStreamError, match="no picture track"):
        decoder.decode(tmp_path / "only.mp4", FrameSampling(2))


@pytest.mark.parametrize("killer", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_crash_is_the_videos_fault_and_the_next_job_works(never: int, clip: Path, killer: signal.Signals) -> None:
    victims: list[int] = []

    def kill(pid: int) -> None:
        victims.append(pid)
        if len(victims) == 1:
            os.kill(pid, killer)

    with SandboxedDecoder(on_start=kill) as decoder:
        with pytest.raises(CorruptMediaError, match=killer.name):
            decoder.decode(never, FrameSampling(1))
        assert decoder.decode(clip, FrameSampling(2)).num_frames == 2


def test_a_video_that_never_comes_runs_into_the_time_limit(never: int, clip: Path, decoder: SandboxedDecoder) -> None:
    started = time.monotonic()
    with pytest.raises(MediaLimitError, match=r"longer than the 0\.3 s"):
        decoder.decode(never, FrameSampling(1), limits=MediaLimits(timeout_seconds=0.3))
    assert time.monotonic() - started < LIVENESS_SECONDS
    assert decoder.decode(clip, FrameSampling(1)).num_frames == 1


def test_a_stopped_child_is_killed_at_the_time_limit(never: int) -> None:
    limits = MediaLimits(timeout_seconds=0.3)
    with (
        SandboxedDecoder(on_start=lambda pid: os.kill(pid, signal.SIGSTOP)) as decoder,
        pytest.raises(MediaLimitError, match=r"0\.3 s"),
    ):
        decoder.decode(never, FrameSampling(1), limits=limits)


def test_cancelling_kills_at_once(never: int) -> None:
    cancelled = threading.Event()
    pids: list[int] = []

    def started(pid: int) -> None:
        pids.append(pid)
        threading.Timer(0.1, cancelled.set).start()

    with SandboxedDecoder(on_start=started, max_spare=0) as decoder:
        with pytest.raises(concurrent.futures.CancelledError):
            decoder.decode(
                never, FrameSampling(1), limits=MediaLimits(timeout_seconds=LIVENESS_SECONDS), cancelled=cancelled
            )
        assert pids[0] not in children()


def test_cancelled_before_it_starts(decoder: SandboxedDecoder, clip: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(concurrent.futures.CancelledError):
        decoder.decode(clip, FrameSampling(1), cancelled=cancelled)


def test_a_spare_that_dies_waiting_is_replaced(clip: Path) -> None:
    with SandboxedDecoder() as decoder:
        decoder.decode(clip, FrameSampling(1))
        for pid in children():
            os.kill(pid, signal.SIGKILL)
        assert decoder.decode(clip, FrameSampling(2)).num_frames == 2


def test_closing_ends_jobs_at_work(never: int) -> None:
    started = threading.Event()
    decoder = SandboxedDecoder(on_start=lambda pid: started.set())
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        job = pool.submit(decoder.decode, never, FrameSampling(1))
        assert started.wait(LIVENESS_SECONDS)
        decoder.close()
        with pytest.raises(UnavailableError, match="closed"):
            job.result(LIVENESS_SECONDS)
    with pytest.raises(UnavailableError, match="closed"):
        decoder.decode(never, FrameSampling(1))
    assert not children()


def test_many_threads_good_and_bad_leave_nothing_behind(clip: Path) -> None:
    before = open_descriptors()
    with SandboxedDecoder() as decoder, concurrent.futures.ThreadPoolExecutor(4) as pool:

        def job(index: int) -> list[int] | None:
            source: Path | bytes = clip if index % 3 else b"garbage" * 50
            try:
                return numbers_of(decoder.decode(source, FrameSampling(4)).frames_thwc_u8)
            except UnsupportedMediaError:
                return None

        results = list(pool.map(job, range(12)))
    assert results == [spread(FRAMES, 4) if index % 3 else None for index in range(12)]
    assert not children()
    assert open_descriptors() == before


def test_limits_are_checked_before_a_child_is_used(clip: Path) -> None:
    pids: list[int] = []
    with SandboxedDecoder(max_spare=0, on_start=pids.append) as decoder:
        with pytest.raises(MediaLimitError, match="more than the 100 allowed"):
            decoder.decode(clip, FrameSampling(1), limits=MediaLimits(max_bytes=100))
        with pytest.raises(MediaLimitError, match="65 frames"):
            decoder.decode(clip, FrameSampling(65))
    assert not pids


def test_memory_limit(decoder: SandboxedDecoder, tmp_path: Path) -> None:
    """Frames that fit one by one, but not all at once."""
    path = tmp_path / "big.mp4"
    write_video(path, [np.zeros((2160, 3840, 3), np.uint8)] * 2, codec_options={"preset": "ultrafast"})
    limits = MediaLimits(memory_bytes=900 * 1024**2)
    assert decoder.decode(path, FrameSampling(2), limits=limits, resize=FrameResize(size=(8, 8))).num_frames == 2
    with pytest.raises(MediaLimitError, match=f"more memory than the {900 * 1024**2} bytes"):
        decoder.decode(path, FrameSampling(64), limits=limits)


def test_negative_spares_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="-1"):
        SandboxedDecoder(max_spare=-1)


def test_a_child_has_given_up_its_rights(never: int) -> None:
    """Read from the kernel's own account of the child, while it waits for the video."""
    seen: dict[str, str] = {}

    def look(pid: int) -> None:
        proc = Path(f"/proc/{pid}")
        wait_until(lambda: "Max open files            0 " in (proc / "limits").read_text())
        wait_until(lambda: "Seccomp:\t2" in (proc / "status").read_text() or not _seccomp.is_available())
        seen["limits"] = (proc / "limits").read_text()
        seen["status"] = (proc / "status").read_text()
        seen["environ"] = (proc / "environ").read_text()
        seen["files"] = " ".join(sorted(os.readlink(entry).split(":")[0] for entry in (proc / "fd").iterdir()))
        os.kill(pid, signal.SIGKILL)

    with SandboxedDecoder(on_start=look) as decoder, pytest.raises(CorruptMediaError):
        decoder.decode(never, FrameSampling(1), limits=MediaLimits(memory_bytes=2**31, timeout_seconds=7))
    limits = {line[:26].strip(): line[26:].split()[:2] for line in seen["limits"].splitlines()[1:]}
    assert limits["Max open files"] == ["0", "0"]
    assert limits["Max file size"] == ["0", "0"]
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max processes"] == ["0", "0"]
    assert limits["Max address space"] == [str(2**31)] * 2
    assert limits["Max cpu time"] == ["12", "12"]
    assert "NoNewPrivs:\t1" in seen["status"]
    assert ("Seccomp:\t2" in seen["status"]) == _seccomp.is_available()
    assert seen["environ"].count("=") == 3
    assert seen["files"] == "/dev/null /dev/null /dev/null pipe socket"


def test_playlists_cannot_open_their_neighbours(decoder: SandboxedDecoder, clip: Path, tmp_path: Path) -> None:
    for name, text in (
        ("evil.ffconcat", f"ffconcat version 1.0\nfile '{clip}'\n"),
        ("evil.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{clip}\n#EXT-X-ENDLIST\n"),
        ("evil.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"),
    ):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(UnsupportedMediaError):
            decoder.decode(path, FrameSampling(1))


def test_children_die_with_their_parent(never: int) -> None:
    """The parent is killed while a child works and another waits: both must notice by themselves."""
    script = (
        "import sys\n"
        "from fastervlm_video.config import FrameSampling\n"
        "from fastervlm_video.media import SandboxedDecoder\n"
        "decoder = SandboxedDecoder(on_start=lambda pid: print('started', flush=True))\n"
        "decoder.decode(int(sys.argv[1]), FrameSampling(1))\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(never)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, text=True, pass_fds=[never]) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        tasks = Path(f"/proc/{parent.pid}/task")

        def grandchildren() -> list[str]:
            return [pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()]

        wait_until(lambda: len(grandchildren()) == 2)
        orphans = [Path("/proc", pid) for pid in grandchildren()]
        parent.kill()
    wait_until(lambda: not any(orphan.exists() and "Z" not in state(orphan) for orphan in orphans))


def state(process: Path) -> str:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def test_a_child_loads_no_model_code() -> None:
    """It must start fast and small: neither torch nor transformers."""
    code = (
        "import sys, fastervlm_video.media._worker; print(sorted({'torch', 'transformers', 'ray'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
