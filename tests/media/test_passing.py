"""Real packets of real files; that the frames which come out are the right ones is checked in ``test_decode``."""

from pathlib import Path

import av
import pytest

from fastervlm_video.media import write_video
from fastervlm_video.media.passing import MOST_REORDERED, PacketsOnTheWay
from tests.media.videos import FPS, numbered

FRAMES = 60
Packets = list["av.Packet[av.VideoStream]"]


@pytest.fixture(params=["b_frames.mp4", "pyramid.mkv", "in_order.mp4"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    options = {
        "b_frames.mp4": {"bf": "3", "b_strategy": "0"},
        "pyramid.mkv": {"bf": "15", "b_strategy": "0", "x264-params": "b-pyramid=normal:ref=16"},
        "in_order.mp4": {"bf": "0"},
    }[request.param]
    path: Path = tmp_path / request.param
    write_video(path, numbered(FRAMES), fps=FPS, gop_size=FRAMES, codec_options=options)
    return path


def packets_of(path: Path) -> Packets:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def times_of(packets: Packets) -> list[int]:
    return [packet.pts for packet in packets if packet.pts is not None]


def test_only_frames_before_the_wanted_one_are_passed(path: Path) -> None:
    packets = packets_of(path)
    times = sorted(times_of(packets))
    for wanted in [*times, times[0] - 1, times[-1] + 1, times[-1] * 10]:
        marked = list(PacketsOnTheWay(iter(packets), lambda wanted=wanted: wanted))  # type: ignore[misc]
        assert [packet for packet, _ in marked] == packets
        shown = max((time for time in times if time <= wanted), default=None)
        assert all(
            packet.pts is not None and shown is not None and packet.pts < shown
            for packet, is_passed in marked
            if is_passed
        )
        before = [time for time in times if shown is not None and time < shown]
        assert sorted(times_of([packet for packet, is_passed in marked if is_passed])) == before


def test_nothing_is_passed_without_a_wanted_moment(path: Path) -> None:
    assert not any(is_passed for _, is_passed in PacketsOnTheWay(iter(packets_of(path)), lambda: None))


def test_the_last_frame_by_a_moment_is_known_before_the_next_is_decoded(path: Path) -> None:
    packets = packets_of(path)
    times = sorted(times_of(packets))
    for index in range(0, FRAMES - 2 * MOST_REORDERED, 7):
        wanted, way = times[index], PacketsOnTheWay(iter(packets), lambda index=index: times[index])  # type: ignore[misc]
        for packet, _ in way:
            if packet.pts == wanted:
                break
        assert [time for time in times if time <= wanted and way.is_last(time, wanted)] == [wanted]


def test_reading_ahead_is_bounded(path: Path) -> None:
    packets = packets_of(path)
    read = 0

    def counted() -> "av.Packet[av.VideoStream]":
        nonlocal read
        read += 1
        return packets[read - 1]

    last = times_of(packets)[-1] * 10
    endless = iter(counted, None)
    for given, _ in enumerate(PacketsOnTheWay(endless, lambda: last), start=1):
        assert read <= given + MOST_REORDERED
        if given == FRAMES - MOST_REORDERED - 1:
            break


def test_libav_decodes_fewer_frames_and_the_wanted_one_among_them(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, numbered(FRAMES), fps=FPS, gop_size=FRAMES, codec_options={"bf": "3", "b_strategy": "0"})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        packets = (packet for packet in container.demux(stream) if packet.size)
        wanted = sorted(times_of(packets_of(path)))[45]
        decoded: list[int] = []
        for packet, is_passed in PacketsOnTheWay(packets, lambda: wanted):
            stream.codec_context.skip_frame = "NONREF" if is_passed else "DEFAULT"
            decoded += [frame.pts for frame in stream.codec_context.decode(packet) if frame.pts is not None]
    until = [time for time in decoded if time <= wanted]
    assert until[-1] == wanted
    assert len(until) < 46 * 2 / 3
