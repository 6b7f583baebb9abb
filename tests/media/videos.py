"""Videos whose every frame says its number, and a plain sequential decoder to check others against."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]

BITS = 8
HEIGHT, WIDTH = 48, 64
FPS = 25


def numbered(count: int, height: int = HEIGHT, width: int = WIDTH) -> Iterator[Frame]:
    """Frame i shows i in binary: eight vertical bars, lowest bit on the left; the top quarter is grey."""
    bar = width // BITS
    for index in range(count):
        frame = np.zeros((height, width, 3), np.uint8)
        for bit in range(BITS):
            frame[:, bit * bar : (bit + 1) * bar] = 255 if index >> bit & 1 else 0
        frame[: height // 4] = 128
        yield frame


def number_of(frame: Frame) -> int:
    """The number that a frame shows."""
    bar = frame.shape[1] // BITS
    row = frame[frame.shape[0] * 5 // 8]
    return sum(1 << bit for bit in range(BITS) if row[bit * bar + bar // 2, 1] > 127)


def numbers_of(frames: Sequence[Frame] | Frame) -> list[int]:
    return [number_of(frame) for frame in frames]


def spread(count: int, frames: int) -> list[int]:
    """``linspace(0, last, frames)`` rounded down, in whole numbers."""
    if frames == 1:
        return [(count - 1) // 2]
    return [(count - 1) * i // (frames - 1) for i in range(frames)]


def decode_everything(path: Path) -> list[tuple[float, Frame]]:
    """Every frame of the first picture track and its time, the slow and simple way."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        stamps: list[tuple[float, Frame]] = []
        for frame in container.decode(stream):
            assert frame.time is not None
            stamps.append((frame.time, np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)))
    first = stamps[0][0]
    return [(seconds - first, pixels) for seconds, pixels in stamps]


def shown_at(frames: list[tuple[float, Frame]], moments: Sequence[float]) -> list[int]:
    """Index of the latest frame that begins by each moment, give or take rounding."""
    return [max(i for i, (seconds, _) in enumerate(frames) if seconds <= moment + 1e-3) for moment in moments]


def write_with_sound(path: Path, frames: int, *, sound_seconds: float, sound_first: bool = True) -> None:
    """An mp4 or mkv with an AAC track, listed before or after the picture track."""
    with av.open(str(path), "w") as out:
        streams: dict[str, av.AudioStream | av.VideoStream] = {}
        for kind in ("sound", "picture") if sound_first else ("picture", "sound"):
            if kind == "sound":
                streams[kind] = out.add_stream("aac", rate=16_000)
            else:
                streams[kind] = out.add_stream("libx264", rate=FPS)
        picture, sound = streams["picture"], streams["sound"]
        assert isinstance(picture, av.VideoStream)
        assert isinstance(sound, av.AudioStream)
        picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        picture.codec_context.gop_size = 10
        for index, pixels in enumerate(numbered(frames)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            out.mux(picture.encode(frame))
        out.mux(picture.encode(None))
        encode_silence(out, sound, sound_seconds)


def encode_silence(out: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    rate = stream.codec_context.sample_rate
    for start in range(0, int(seconds * rate), 1024):
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts, silence.time_base = rate, start, Fraction(1, rate)
        out.mux(stream.encode(silence))
    out.mux(stream.encode(None))


def write_sound(path: Path, codec: str = "aac", rate: int = 48_000) -> None:
    """A second of silence and nothing else."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate)
        assert isinstance(stream, av.AudioStream)
        encode_silence(out, stream, 1)
