"""The command line on pictures, with architectures of one view and of several."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from transformers import LlavaNextImageProcessor

from fastervlm_video.media import write_video
from fastervlm_video.mini import random_scene, render_scene
from tests.checkpoints import SMALL, save_random_checkpoint, save_random_llava, save_random_llava_next
from tests.cli_kit import Run

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTION = "What color is the square?"
PATCHES = (SMALL.image_size // SMALL.patch_size) ** 2
WIDE = (40, 120)  # (height, width): fits 32 x 96 best of the checkpoint's resolutions, so a row of three tiles
TILES, ROWS = 3, 4  # of them; and rows of patches in those tiles, none of which is padding
KEPT = 3
CELL, GAP = 272, 14


def scene(height: int, width: int) -> npt.NDArray[np.uint8]:
    return render_scene(random_scene(0), num_frames=20, height=height, width=width)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a picture is is told by its content: the name says video."""
    path = tmp_path_factory.mktemp("picture") / "picture.mp4"
    Image.fromarray(scene(*WIDE)[10]).save(path, format="PNG")
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.png"
    write_video(path.with_suffix(".mp4"), scene(*WIDE), fps=10)
    return path.with_suffix(".mp4").rename(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    makers = {
        "one tower for each": save_random_checkpoint,
        "one view": save_random_llava,
        "tiles": save_random_llava_next,
    }
    return {name: make(root / name.replace(" ", "-")) for name, make in makers.items()}


def test_the_wide_picture_has_the_views_that_hugging_face_makes_of_it(picture: Path, models: dict[str, Path]) -> None:
    processor = LlavaNextImageProcessor.from_pretrained(models["tiles"])
    with Image.open(picture) as opened:
        pixels = processor(opened.convert("RGB"), return_tensors="np")["pixel_values"]
    assert pixels.shape[1] == 1 + TILES


@pytest.mark.parametrize(
    ("name", "layout", "views", "kept", "full"),
    [
        ("one tower for each", "hugging_face", 1, KEPT, PATCHES),
        ("one view", "hugging_face", 1, KEPT, PATCHES),
        ("one view", "reference", 1, KEPT, PATCHES),
        ("tiles", "hugging_face", 1 + TILES, (1 + TILES) * KEPT + ROWS, (1 + TILES) * PATCHES + ROWS),
        ("tiles", "reference", 1 + TILES, (1 + TILES) * KEPT, (1 + TILES) * PATCHES),
    ],
)
def test_a_picture_is_asked(
    run: Run, picture: Path, models: dict[str, Path], name: str, layout: str, views: int, kept: int, full: int
) -> None:
    options = ["-m", models[name], "--keep-tokens", KEPT, "--image-layout", layout, "--max-tokens", 4]
    plain = run("ask", picture, QUESTION, *options)
    done = run("ask", picture, QUESTION, *options, "--json", "--frames", 64)  # which is for videos
    report = json.loads(done.out)
    assert plain.out == f"{report['answer']}\n"
    seen = "1 picture" if views == 1 else f"1 picture, {views} views"
    assert f": {kept} of {full} visual tokens ({seen}, cls_attention); decode " in plain.err
    video = report["video"]
    assert (video["medium"], video["frames"], video["frame_seconds"]) == ("image", 1, [0.0])
    assert (video["views_per_picture"], video["tokens_per_frame"]) == (views, [KEPT] * views)
    assert (video["tokens_kept"], video["tokens_full"]) == (kept, full)
    assert report["usage"]["visual_tokens"] == kept


def test_a_video_of_tiled_frames(run: Run, clip: Path, models: dict[str, Path]) -> None:
    options = ["-m", models["tiles"], "--keep-tokens", KEPT, "--frames", 2, "--max-tokens", 4]
    plain = run("ask", clip, QUESTION, *options)
    labelled = run("ask", clip, QUESTION, *options, "--frame-label", "frame {n}: ", "--json")
    report, per_frame = json.loads(labelled.out), (1 + TILES) * KEPT + ROWS
    seen = f"{2 * per_frame} of {2 * ((1 + TILES) * PATCHES + ROWS)} visual tokens (2 frames, {1 + TILES} views each"
    assert seen in plain.err
    video = report["video"]
    assert (video["medium"], video["frames"], len(video["frame_seconds"])) == ("video", 2, 2)
    assert len(video["tokens_per_frame"]) == 2 * (1 + TILES)
    bare = json.loads(run("ask", clip, QUESTION, *options, "--json").out)["usage"]
    words = report["usage"]["prompt_tokens"] - bare["prompt_tokens"]
    assert report["usage"]["visual_tokens"] == bare["visual_tokens"] == 2 * per_frame
    assert words >= 2 * 2  # at least "frame" and a number, twice


def test_a_labelled_picture_is_no_frame(run: Run, picture: Path, models: dict[str, Path]) -> None:
    options = ["-m", models["tiles"], "--max-tokens", 4, "--json"]
    usage = [
        json.loads(run("ask", picture, QUESTION, *options, *label).out)["usage"]
        for label in ([], ["--frame-label", "frame {n}: "])
    ]
    assert usage[0] == usage[1]


@pytest.mark.parametrize(("name", "views", "separators"), [("one view", 1, 0), ("tiles", 1 + TILES, ROWS)])
def test_show_draws_all_views_of_a_picture(
    run: Run, picture: Path, models: dict[str, Path], tmp_path: Path, name: str, views: int, separators: int
) -> None:
    out = tmp_path / "kept.png"
    done = run("show", picture, "--out", out, "-m", models[name], "--keep-tokens", KEPT)
    kept, full = views * KEPT + separators, views * PATCHES + separators
    assert done.out == f"{out}: {kept} of {full} visual tokens kept by cls_attention\n"
    with Image.open(out) as drawn:
        assert drawn.width == views * (CELL + GAP) + GAP


def test_what_is_wrong_with_a_question_is_told_before_a_picture_is_decoded(
    run: Run, models: dict[str, Path], tmp_path: Path
) -> None:
    """A picture's placeholder is reserved, and a damaged picture is not looked at before that is said."""
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"\xff\xd8\xff and nothing else")
    assert "<image>" in run("ask", damaged, "an <image>", "-m", models["tiles"]).error
    assert "picture" in run("ask", damaged, QUESTION, "-m", models["tiles"]).error
    too_long = [
        "--max-tokens",
        500,
        "--keep",
        1,
        "-m",
        models["one view"],
    ]  # for a picture, not for a video of 8 frames
    assert f"{PATCHES} visual tokens" in run("ask", damaged, QUESTION, *too_long).error


def test_a_damaged_picture_is_told_in_one_line(
    run: Run, picture: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(picture.read_bytes()[:200])
    for command in (("ask", damaged, QUESTION), ("show", damaged, "--out", tmp_path / "kept.png")):
        done = run(*command, "-m", models["one view"])
        assert done.error
        assert done.status == 2
