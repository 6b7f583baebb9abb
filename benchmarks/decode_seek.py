"""What do 8 frames cost out of videos of 10 seconds, 1, 10 and 60 minutes, by us and by others?

The files are H.264 with the same keyframe distance; the longer are the minute's packets, over and over. Where frames
are sought, all cost about the same; decoding everything makes the hour 60 times as dear as the minute.

    python benchmarks/decode_seek.py --json seek.json --plot seek.png

Every arm ends with the same resizing, one thread decodes, and all arms must return the same frames, pixel for pixel,
and times. ``decord`` and ``torchcodec`` take part if they can be imported. (``torchcodec`` uses the FFmpeg libraries it
finds; its approximate mode trusts a constant frame rate and reads no packets, its exact mode reads them all.)

Decoding is one thread of pure computation, so the verdict is on processor time, which other work on the machine
disturbs least; elapsed time is shown beside it. The sandbox works in other processes, so it has elapsed time only.
"""

import argparse
import functools
import importlib
import json
import select
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from fastervlm_video.config import FrameResize, FrameSampling
from fastervlm_video.media import SandboxedDecoder, apply_resize, decode_video, write_video

FPS, GOP_FRAMES, MINUTE_SECONDS, SHORT_SECONDS = 24, 48, 60, 10
RESIZE = FrameResize(shortest_edge=224, crop=(224, 224))
TIMES_AGREE_SECONDS = 1e-3
SANDBOX_SHARE = 5  # of the repeats, one in so many is done in the sandbox, too
OURS, SANDBOX, ALL = "ours", "ours, sandboxed", "decode everything"

Frames = npt.NDArray[np.uint8]
Sampled = tuple[Frames, list[float]]
Arm = Callable[[Path, int], Sampled]


@dataclass(frozen=True)
class Taken:
    """Seconds of one decode."""

    processor: float
    elapsed: float


Times = dict[str, dict[str, list[Taken]]]
"""By file and arm."""


def main() -> int:
    """Time all arms on all files, print a table; the exit status says whether the target was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8, help="frames per decode, at least 2 (default 8)")
    parser.add_argument("--repeats", type=int, default=30, help="decodes of each file, interleaved (default 30)")
    parser.add_argument("--minutes", type=int, default=60, help="length of the longest file, at least 3 (default 60)")
    parser.add_argument("--size", default="320x240", help="of the pictures (default 320x240)")
    parser.add_argument("--target", type=float, default=1.2, help="highest ratio that passes (default 1.2)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="also draw them here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, SandboxedDecoder() as sandbox:
        paths = write_files(Path(folder), options.minutes, options.size)
        times = measure({OURS: ours, **peers(), ALL: decode_all}, paths, options)
        measure_sandboxed(sandbox, paths, options, times)
    result = report(times, options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.plot:
        draw(times, options.plot)
    return 0 if result["ratio_of_medians"] <= options.target else 1


def write_files(folder: Path, minutes: int, size: str) -> list[Path]:
    """The four videos, shortest first."""
    width, height = map(int, size.split("x"))
    short, minute = folder / f"{SHORT_SECONDS} s.mp4", folder / "1 min.mp4"
    write_video(short, moving_picture(FPS * SHORT_SECONDS, height, width), fps=FPS, gop_size=GOP_FRAMES)
    write_video(minute, moving_picture(FPS * MINUTE_SECONDS, height, width), fps=FPS, gop_size=GOP_FRAMES)
    lengths = (max(2, minutes // 6), minutes)
    longer = [folder / f"{length} min.mp4" for length in lengths]
    for path, length in zip(longer, lengths, strict=True):
        repeat_packets(minute, path, length)
    return [short, minute, *longer]


def moving_picture(count: int, height: int, width: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Noise that scrolls, with a slow change of light: motion for the encoder, nothing trivial to skip."""
    noise = np.random.default_rng(0).integers(0, 200, (height, width, 3), dtype=np.uint8)
    noise = noise.repeat(8, axis=0)[:height].repeat(8, axis=1)[:, :width]
    for index in range(count):
        light = np.uint8(50 * index / count)
        yield np.roll(noise, (index, 2 * index), axis=(0, 1)) + light


def repeat_packets(source: Path, target: Path, times: int) -> None:
    """Write ``source``'s packets ``times`` times over, one after the other, without encoding anything."""
    with av.open(str(target), "w") as out, av.open(str(source)) as once:
        stream = out.add_stream_from_template(once.streams.video[0])
        step = once.streams.video[0].duration
        assert step is not None
        for repeat in range(times):
            once.seek(0)
            for packet in once.demux(video=0):
                if packet.dts is None or packet.pts is None:
                    continue
                packet.pts += repeat * step
                packet.dts += repeat * step
                packet.stream = stream
                out.mux(packet)


def ours(path: Path, frames: int) -> Sampled:
    """This project's decoder, in this process."""
    batch = decode_video(path, FrameSampling(frames), resize=RESIZE)
    return batch.frames_thwc_u8, list(batch.pts_seconds)


def sandboxed(sandbox: SandboxedDecoder, path: Path, frames: int) -> Sampled:
    """This project's decoder as the service runs it: in a process of its own, one of which waits for work."""
    batch = sandbox.decode(path, FrameSampling(frames), resize=RESIZE)
    return batch.frames_thwc_u8, list(batch.pts_seconds)


def decode_all(path: Path, frames: int) -> Sampled:
    """Every frame is decoded; the wanted ones are kept."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = evenly(stream.frames, frames)
        kept = [frame for index, frame in enumerate(container.decode(stream)) if index in wanted]
    return resized([frame.to_ndarray(format="rgb24", threads=1) for frame in kept]), [float(f.time) for f in kept]


def peers() -> dict[str, Arm]:
    """The other libraries that can be imported here; says which."""
    found: dict[str, Arm] = {}
    modes = ("exact", "approximate")
    torchcodec_arms = {f"torchcodec, {mode}": functools.partial(torchcodec_arm, mode) for mode in modes}
    for name, arms in (("decord", {"decord": decord_arm}), ("torchcodec", torchcodec_arms)):
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name} does not take part: {str(error).strip().splitlines()[0]}")
        else:
            print(f"{name} {module.__version__}")
            found |= arms
    return found


def decord_arm(path: Path, frames: int) -> Sampled:
    """``decord.VideoReader``, one thread."""
    decord: Any = importlib.import_module("decord")
    reader = decord.VideoReader(str(path), num_threads=1)
    wanted = evenly(len(reader), frames)
    times = reader.get_frame_timestamp(wanted)[:, 0]
    return resized(reader.get_batch(wanted).asnumpy()), list(map(float, times))


def torchcodec_arm(mode: str, path: Path, frames: int) -> Sampled:
    """``torchcodec.decoders.VideoDecoder``, one thread."""
    decoders: Any = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(str(path), num_ffmpeg_threads=1, seek_mode=mode, dimension_order="NHWC")
    batch = decoder.get_frames_at(evenly(decoder.metadata.num_frames, frames))
    return resized(batch.data.numpy()), batch.pts_seconds.tolist()


def evenly(count: int, frames: int) -> list[int]:
    """The frames that :class:`FrameSampling` means at a constant rate."""
    return [(count - 1) * index // (frames - 1) for index in range(frames)]


def resized(pictures: Any) -> Frames:
    """What all arms do at the end."""
    return np.stack([apply_resize(np.asarray(picture, np.uint8), RESIZE) for picture in pictures])


def measure(arms: dict[str, Arm], paths: list[Path], options: argparse.Namespace) -> Times:
    """What each arm took for each file, in turn, so that a slow spell hits all; the first round is checked instead.

    Raises:
        RuntimeError: an arm returns other frames than decoding everything does.
    """
    times: Times = {path.stem: {name: [] for name in arms} for path in paths}
    for repeat in range(options.repeats + 1):
        for path in paths:
            found: dict[str, Sampled] = {}
            for name, arm in arms.items():
                if name == ALL and repeat:
                    continue
                taken, found[name] = timed(arm, path, options.frames)
                if repeat or name == ALL:
                    times[path.stem][name].append(taken)
            if not repeat:
                check_agreement(found, path)
    return times


def measure_sandboxed(sandbox: SandboxedDecoder, paths: list[Path], options: argparse.Namespace, times: Times) -> None:
    """Apart from the others and fewer times, for the next process comes up while one works, which takes a second."""
    for path in paths:
        times[path.stem][SANDBOX] = []
    for _ in range(-(-options.repeats // SANDBOX_SHARE)):
        for path in paths:
            await_spare(sandbox)
            taken, result = timed(functools.partial(sandboxed, sandbox), path, options.frames)
            check_agreement({ALL: ours(path, options.frames), SANDBOX: result}, path)
            times[path.stem][SANDBOX].append(taken)


def timed(arm: Arm, path: Path, frames: int) -> tuple[Taken, Sampled]:
    """Run an arm once."""
    started = time.process_time(), time.perf_counter()
    result = arm(path, frames)
    return Taken(time.process_time() - started[0], time.perf_counter() - started[1]), result


def await_spare(sandbox: SandboxedDecoder) -> None:
    """Wait until the process that waits for work is up, as it is in a service where seconds pass between videos."""
    select.select([spare._sock for spare in sandbox._spares], [], [])


def check_agreement(found: dict[str, Sampled], path: Path) -> None:
    """All arms return the same pixels and times."""
    pixels, times = found[ALL]
    for name, (others, stamps) in found.items():
        if not np.array_equal(others, pixels) or not np.allclose(stamps, times, rtol=0, atol=TIMES_AGREE_SECONDS):
            raise RuntimeError(f"{name} returns other frames of {path.name} than decoding everything does")


def report(times: Times, options: argparse.Namespace) -> dict[str, Any]:
    """Print the table and return the numbers."""
    print(f"{options.frames} frames, {options.size} H.264, keyframe every {GOP_FRAMES} frames, one thread")
    print("all arms return the same pixels and times; processor / elapsed milliseconds, medians")
    files, arms = list(times), list(next(iter(times.values())))
    ratio_name = f"{files[3]} / {files[1]}"
    print(f"{'':>24}" + "".join(f"{file:>20}" for file in files) + f"{ratio_name:>18}")
    medians: dict[str, dict[str, dict[str, float]]] = {}
    for arm in arms:
        medians[arm] = {file: median_of(times[file][arm]) for file in files}
        cells = "".join("{:11.1f} {:8.1f}".format(*(1e3 * x for x in medians[arm][file].values())) for file in files)
        print(f"{arm:>24}{cells}   {ratio(medians[arm], files, clock_of(arm)):15.2f}")
    found = ratio(medians[OURS], files, "processor_seconds")
    elapsed = ratio(medians[OURS], files, "elapsed_seconds")
    print(f"{ratio_name}: {found:.3f} processor, {elapsed:.3f} elapsed (target at most {options.target})")
    facts = {"frames": options.frames, "size": options.size, "minutes": options.minutes, "repeats": options.repeats}
    return {**facts, "medians": medians, "ratio_of_medians": found, "ratio_of_elapsed_medians": elapsed}


def median_of(taken: list[Taken]) -> dict[str, float]:
    """Of both clocks."""
    return {
        "processor_seconds": statistics.median(each.processor for each in taken),
        "elapsed_seconds": statistics.median(each.elapsed for each in taken),
    }


def clock_of(arm: str) -> str:
    """The clock that sees an arm's work."""
    return "elapsed_seconds" if arm == SANDBOX else "processor_seconds"


def ratio(medians: dict[str, dict[str, float]], files: list[str], clock: str) -> float:
    """The longest file to the minute."""
    return medians[files[3]][clock] / medians[files[1]][clock]


def draw(times: Times, path: Path) -> None:
    """Processor time, on a logarithmic axis, against length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.subplots()
    for arm in next(iter(times.values())):
        if clock_of(arm) == "processor_seconds":
            medians = [1e3 * median_of(taken[arm])["processor_seconds"] for taken in times.values()]
            axes.plot(list(times), medians, marker="o", markersize=3, label=arm)
    axes.set_yscale("log")
    axes.set(xlabel="length of the video", ylabel="processor time, ms")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
