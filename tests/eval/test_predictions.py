import json
from pathlib import Path

import pytest

from fastervlm_video.errors import InvalidInputError
from fastervlm_video.eval import Arm, Prediction, PredictionStore, read_manifest, read_predictions
from fastervlm_video.eval.predictions import MANIFEST_FILE, PREDICTIONS_FILE

MANIFEST = {"model": "x", "dataset_digest": "abc", "max_tokens": 16}


def prediction(identity: str = "1", method: str = "random", pred: str = "röt", seed: int = 0) -> Prediction:
    return Prediction(
        identity, "videos/a.mp4", "hm\n?", "red", pred, "color", ("x", "y"), method, 0.1, seed, 12, 12.5, 0.2, 0.1, 1.5
    )  # fmt: skip


def test_predictions_come_back_as_they_were(tmp_path: Path) -> None:
    with PredictionStore(tmp_path / "a" / "run", MANIFEST) as store:
        store.append([prediction("1"), prediction("2")])
        store.append([prediction("1", seed=1)])
        assert store.has(Arm("random", 0.1, 1), "1")
        assert not store.has(Arm("random", 0.1, 1), "2")
        assert read_predictions(store.folder) == store.predictions  # on disk at once
    with PredictionStore(tmp_path / "a" / "run", MANIFEST) as again:
        assert again.predictions == [prediction("1"), prediction("2"), prediction("1", seed=1)]
        assert again.has(Arm("random", 0.1), "2")
    assert read_manifest(tmp_path / "a" / "run") == MANIFEST


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_line_cut_short_is_dropped_and_written_anew(tmp_path: Path, cut: int) -> None:
    with PredictionStore(tmp_path, MANIFEST) as store:
        store.append([prediction("1"), prediction("2")])
    path = tmp_path / PREDICTIONS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert read_predictions(tmp_path) == [prediction("1")]
    assert path.read_bytes() == whole[:-cut]  # reading changes nothing
    with PredictionStore(tmp_path, MANIFEST) as store:
        assert store.predictions == [prediction("1")]
        assert not store.has(prediction("2").arm, "2")
        store.append([prediction("2")])
    assert path.read_bytes() == whole


def test_a_cut_inside_a_character(tmp_path: Path) -> None:
    with PredictionStore(tmp_path, MANIFEST) as store:
        store.append([prediction("1")])
    path = tmp_path / PREDICTIONS_FILE
    position = path.read_bytes().index("ö".encode())
    path.write_bytes(path.read_bytes()[: position + 1])
    assert read_predictions(tmp_path) == []


@pytest.mark.parametrize(
    "line", ["not json", "[1]", "{}", json.dumps({"id": "1", "choices": None}), json.dumps({"choices": None, "x": 1})]
)
def test_damage_before_the_end_is_no_cut(tmp_path: Path, line: str) -> None:
    with PredictionStore(tmp_path, MANIFEST) as store:
        store.append([prediction("1")])
    path = tmp_path / PREDICTIONS_FILE
    path.write_text(path.read_text() + line + "\n")
    for reading in (lambda: read_predictions(tmp_path), lambda: PredictionStore(tmp_path, MANIFEST)):
        with pytest.raises(InvalidInputError, match="line 2, is damaged"):
            reading()


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    PredictionStore(tmp_path, MANIFEST).close()
    with pytest.raises(InvalidInputError, match="max_tokens was 16, is 8; extra was None, is 'y'"):
        PredictionStore(tmp_path, MANIFEST | {"max_tokens": 8, "extra": "y"})
    assert read_manifest(tmp_path) == MANIFEST


def test_starting_over(tmp_path: Path) -> None:
    with PredictionStore(tmp_path, MANIFEST) as store:
        store.append([prediction()])
    with PredictionStore(tmp_path, {"model": "y"}, resume=False) as store:
        assert store.predictions == []
    assert read_manifest(tmp_path) == {"model": "y"}
    assert read_predictions(tmp_path) == []


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with PredictionStore(tmp_path, MANIFEST) as store:
        store.append([prediction()])
        for resume in (True, False):
            with pytest.raises(InvalidInputError, match="another run is writing"):
                PredictionStore(tmp_path, MANIFEST, resume=resume)
        assert read_predictions(tmp_path) == [prediction()]
    PredictionStore(tmp_path, MANIFEST).close()


def test_folders_that_hold_no_run(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="holds no run"):
        read_predictions(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text("{")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text("[]")
    with pytest.raises(InvalidInputError, match="must hold a JSON object"):
        read_manifest(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot write to"):
        PredictionStore(tmp_path / "file", MANIFEST)
