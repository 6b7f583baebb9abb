from pathlib import Path

import numpy as np
import pytest
import torch

from fastervlm_video.mini import render_scenes
from fastervlm_video.mini.scenes import CLOSE_UP, STANDARD
from fastervlm_video.mini.training import clips
from fastervlm_video.mini.training.clips import Corpus, clip_frames, make_corpus
from fastervlm_video.mini.training.features import extract_features
from tests.mini.kit import draw, same
from tests.mini.training.kit import TIMES, preprocessing, random_tower, rendered_corpus

SIDE = 28


def test_frames_are_those_of_the_scene_but_for_what_the_codec_does() -> None:
    scenes, rng = draw(0, 8), np.random.default_rng(0)
    for index in range(8):
        scene = scenes[index : index + 1]
        frames = clip_frames(scene, rng, 112)
        drawn = render_scenes(scene, TIMES[None], height=112, width=112)[0]
        assert frames.shape == drawn.shape == (8, 112, 112, 3)
        assert frames.dtype == np.uint8
        error = np.abs(frames.astype(int) - drawn).mean(axis=(1, 2, 3))
        assert (error > 0.5).all()
        assert (error < 16).all()
        others = np.abs(frames[0].astype(int) - drawn[-1]).mean()
        assert others > error[0]  # each frame at its own time


def test_a_corpus_follows_from_its_seed_whatever_the_number_of_workers(tmp_path: Path) -> None:
    done: list[int] = []
    corpus = make_corpus(tmp_path / "made", seed=3, count=66, side=SIDE, workers=2, progress=done.append)
    assert done == [64, 66]
    assert len(corpus) == 66
    assert corpus.frames_u8.shape == (66, 8, SIDE, SIDE, 3)
    for start, count in ((0, 64), (64, 2)):
        scenes, frames = clips._chunk(3, start, count, SIDE, STANDARD)
        assert same(corpus.scenes[start : start + count], scenes)
        assert np.array_equal(corpus.frames_u8[start : start + count], frames)
    assert not np.array_equal(clips._chunk(4, 64, 2, SIDE, STANDARD)[1], corpus.frames_u8[64:])
    again = make_corpus(tmp_path / "made", seed=3, count=66, side=SIDE, workers=2, progress=done.append)
    assert done == [64, 66]  # it was there
    assert np.array_equal(again.frames_u8, corpus.frames_u8)
    large = make_corpus(tmp_path / "large", seed=3, count=20, side=SIDE, workers=1, style=CLOSE_UP)
    assert large.scenes.radius.max() > 1.5 * corpus.scenes.radius.max()


def test_a_corpus_that_was_not_finished_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = [clips._chunk(0, 0, 2, SIDE, STANDARD), clips._chunk(0, 64, 1, SIDE, STANDARD)]

    def interrupted(*_: object, **__: object) -> object:
        yield finished[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(clips, "make_clips", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_corpus(tmp_path, seed=0, count=3, side=SIDE, workers=1)
    with pytest.raises(FileNotFoundError):
        Corpus.open(tmp_path)
    monkeypatch.setattr(clips, "make_clips", lambda *_, **__: iter(finished))
    corpus = make_corpus(tmp_path, seed=0, count=3, side=SIDE, workers=1)
    assert np.array_equal(corpus.frames_u8, np.concatenate([frames for _, frames in finished]))
    assert len(corpus) == len(corpus.frames_u8) == 3


def test_features_are_the_towers_as_the_service_stores_them(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    corpus, tower, path = rendered_corpus(0, 18), random_tower(), tmp_path / "train.npy"
    path.with_suffix(".part").write_bytes(b"interrupted")
    done: list[int] = []
    found = extract_features(corpus, tower, preprocessing(), path, progress=done.append)
    assert done == [16, 18]
    assert found.features.shape == (18, 8, 16, tower.width)
    assert found.features.dtype == np.float16
    assert same(found.scenes, corpus.scenes)
    for index in (0, 17):
        pixels = preprocessing().normalise(
            torch.from_numpy(corpus.frames_u8[index]), torch.device("cpu"), torch.float32
        )
        expected = tower(pixels).features[:, 1:].numpy()
        assert np.array(found.features[index], np.float32) == pytest.approx(expected, abs=2e-3, rel=2e-3)
    extract_features(corpus, random_tower(seed=1), preprocessing(), path, progress=done.append)
    assert done == [16, 18]  # they were there
