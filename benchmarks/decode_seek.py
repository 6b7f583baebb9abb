"""What do 8 frames out of an hour cost, compared with 8 frames out of a minute?

Both files are H.264 with the same keyframe distance; the hour is the minute's packets, over and over. If
frames are sought, the two cost about the same; decoding all would make the hour 60 times dearer.

    python benchmarks/decode_seek.py --json seek.json

Decoding is one thread of pure computation, so the verdict is on processor time, which other work on the
machine disturbs least; elapsed time is shown beside it.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from fastervlm_video.config import FrameResize, FrameSampling
from fastervlm_video.media import decode_video, write_video

FPS, WIDTH, HEIGHT, GOP_FRAMES, MINUTE_SECONDS = 24, 320, 240, 48, 60
RESIZE = FrameResize(shortest_edge=224, crop=(224, 224))


def main() -> int:
    """Time both, print a table; the exit status says whether the target was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=8, help="frames per decode (default 8)")
    parser.add_argument("--repeats", type=int, default=60, help="decodes of each file, interleaved (default 60)")
    parser.add_argument("--minutes", type=int, default=60, help="length of the long file (default 60)")
    parser.add_argument("--target", type=float, default=1.2, help="highest ratio that passes (default 1.2)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        short, long = Path(folder, "minute.mp4"), Path(folder, "long.mp4")
        write_video(short, moving_picture(FPS * MINUTE_SECONDS), fps=FPS, gop_size=GOP_FRAMES)
        repeat_packets(short, long, options.minutes)
        times = measure([short, long], options.frames, options.repeats)
        result = report([short, long], times, options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["ratio_of_medians"] <= options.target else 1


def moving_picture(count: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Noise that scrolls, with a slow change of light: motion for the encoder, nothing trivial to skip."""
    noise = np.random.default_rng(0).integers(0, 200, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    noise = noise.repeat(8, axis=0).repeat(8, axis=1)[:HEIGHT, :WIDTH]
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


def measure(paths: list[Path], frames: int, repeats: int) -> list[list[tuple[float, float]]]:
    """(Processor, elapsed) seconds of each decode of each path, interleaved so that a slow spell hits both."""
    times: list[list[tuple[float, float]]] = [[] for _ in paths]
    for repeat in range(repeats + 1):
        for path, seconds in zip(paths, times, strict=True):
            started = time.process_time(), time.perf_counter()
            batch = decode_video(path, FrameSampling(frames), resize=RESIZE)
            taken = time.process_time() - started[0], time.perf_counter() - started[1]
            assert batch.num_frames == frames
            if repeat:  # the first round warms up
                seconds.append(taken)
    return times


def report(paths: list[Path], times: list[list[tuple[float, float]]], options: argparse.Namespace) -> dict[str, float]:
    """Print the table and return the numbers."""
    print(f"{options.frames} frames, {WIDTH}x{HEIGHT} H.264, keyframe every {GOP_FRAMES} frames, one thread")
    print(f"{'file':>12} {'MB':>7} {'cpu ms':>8} {'elapsed ms':>11} {'p90':>8} {'min':>8}   (medians)")
    processor, elapsed = [], []
    for path, taken in zip(paths, times, strict=True):
        walls = sorted(wall for _, wall in taken)
        processor.append(statistics.median(cpu for cpu, _ in taken))
        elapsed.append(statistics.median(walls))
        cells = [path.stat().st_size / 1e6, *(1e3 * x for x in (processor[-1], elapsed[-1]))]
        tail = [1e3 * walls[int(0.9 * (len(walls) - 1))], 1e3 * walls[0]]
        print("{:>12} {:7.1f} {:8.2f} {:11.2f} {:8.2f} {:8.2f}".format(path.name, *cells, *tail))
    ratio, wall_ratio = processor[1] / processor[0], elapsed[1] / elapsed[0]
    print(f"long / minute: {ratio:.3f} processor, {wall_ratio:.3f} elapsed (target at most {options.target})")
    return {
        "frames": options.frames,
        "minutes": options.minutes,
        "repeats": options.repeats,
        "short_median_cpu_seconds": processor[0],
        "long_median_cpu_seconds": processor[1],
        "short_median_seconds": elapsed[0],
        "long_median_seconds": elapsed[1],
        "ratio_of_medians": ratio,
        "ratio_of_elapsed_medians": wall_ratio,
    }


if __name__ == "__main__":
    sys.exit(main())
