import json
from pathlib import Path

import pytest

from fastervlm_video.errors import InvalidInputError, InvalidRequestError, VideoNotFoundError
from fastervlm_video.eval import Dataset, Sample, open_dataset
from fastervlm_video.eval.datasets import read_gpt_zero_shot, read_jsonl, read_mvbench, read_video_mme
from tests.eval.conftest import NUM_VIDEOS, QUESTIONS


def write_lines(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def record(**changes: object) -> dict[str, object]:
    return {"video": "a.mp4", "id": "1", "question": "what ?", "answer": "red", "type": "color", **changes}


def test_own_data(questions: Path) -> None:
    dataset = open_dataset(str(questions))
    assert (len(dataset.videos), len(dataset.samples)) == (NUM_VIDEOS, NUM_VIDEOS * len(QUESTIONS))
    sample = dataset.samples[0]
    assert sample.video == questions.parent / "videos/0000.mp4"
    assert dataset.video_name(sample) == "videos/0000.mp4"
    assert (sample.question_id, sample.kind, sample.choices) == ("0-0", "color", None)
    assert sample.prompt == sample.question == QUESTIONS["color"]
    assert [len(samples) for samples in dataset.by_video().values()] == [3] * NUM_VIDEOS
    assert dataset.coverage is None


def test_own_multiple_choice_with_letter_or_text(tmp_path: Path) -> None:
    choices = ["red", "dark blue"]
    path = write_lines(
        tmp_path / "q.jsonl",
        record(id="1", choices=choices, answer="B"),
        record(id="2", choices=choices, answer="dark blue"),
        record(id=3, choices=["A. red", "B. dark blue"], answer="(b)", type=None),
        record(id="4", choices=None),
    )
    first, second, third, fourth = read_jsonl(path).samples
    assert first.choices == second.choices == third.choices == ("red", "dark blue")
    assert first.answer == second.answer == third.answer == "B"
    assert (third.question_id, third.kind, fourth.choices) == ("3", "all", None)
    assert first.prompt.splitlines()[:3] == ["what ?", "A. red", "B. dark blue"]
    assert "letter" in first.prompt


def test_a_json_list_will_do(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps([record(id="1"), record(id="2")], indent=2))
    assert [sample.question_id for sample in read_jsonl(tmp_path / "q.json").samples] == ["1", "2"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no questions"),
        ('{"video": "a.mp4"}\n', "'answer' is missing"),
        (json.dumps(record(question=["?"])), "question must be a text, got ['?']"),
        (json.dumps(record(answer=True)), "answer must be a text, got True"),
        (json.dumps(record(question=" ")), "its question is empty"),
        (json.dumps(record()) + "\n\n" + json.dumps(record()), "the question id '1' twice"),
        (json.dumps(record(choices=["x", "y"])), "'red' is neither a letter nor a text of choices ['x', 'y']"),
        (json.dumps(record(choices=["x", "y"], answer="C")), "'C' is neither"),
        (json.dumps(record(choices=["red"])), "none of its choices"),
        (json.dumps(record(choices="red")), "choices must be a list"),
        (json.dumps(record()) + "\n{", "q.jsonl, line 2 is not JSON"),
        ("[1]", "entry 0 must be a JSON object, got int"),
        ('"text"', "must be a JSON object, got str"),
    ],
)
def test_damaged_files_are_told_with_the_place(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(InvalidInputError) as error:
        read_jsonl(tmp_path / "q.jsonl")
    assert words in str(error.value)


def test_missing_files_are_told_with_where_to_get_them(tmp_path: Path) -> None:
    for name, words in {
        f"{tmp_path / 'q.jsonl'}": "no such file",
        f"gpt-zero-shot:{tmp_path}": "Video-LLaVA describes",
        f"videomme:{tmp_path / 'v.jsonl'}": "huggingface.co/datasets/lmms-lab/Video-MME",
        f"mvbench:{tmp_path / 'm.json'}": "huggingface.co/datasets/OpenGVLab/MVBench",
    }.items():
        with pytest.raises(InvalidInputError) as error:
            open_dataset(name)
        assert words in str(error.value)
        assert str(tmp_path) in str(error.value)


def test_missing_videos_are_counted(tmp_path: Path) -> None:
    touch(tmp_path / "0.mp4")
    path = write_lines(tmp_path / "q.jsonl", *(record(id=str(i), video=f"{i}.mp4") for i in range(6)))
    with pytest.raises(
        VideoNotFoundError, match=r"5 of the 6 videos of q are missing: .*1\.mp4, .*2\.mp4, .*3\.mp4, …"
    ):
        open_dataset(str(path))
    assert len(open_dataset(str(path), limit=1).samples) == 1  # those left out need not be there


@pytest.mark.parametrize("name", ["nonsense", "videomme", "other:x", "data.csv"])
def test_unknown_data_sets(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="mini-ood"):
        open_dataset(name)


def test_limit_takes_the_first_videos_with_all_their_questions(dataset: Dataset) -> None:
    limited = dataset.limited(2)
    assert limited.videos == dataset.videos[:2]
    assert len(limited.samples) == 6
    assert dataset.limited(99).samples == dataset.samples
    with pytest.raises(InvalidRequestError, match="got 0"):
        dataset.limited(0)


def test_the_digest_is_of_questions_and_videos_wherever_they_are(tmp_path: Path) -> None:
    digests = []
    for name, changes in {"a": {}, "b": {}, "c": {"answer": "blue"}, "d": {"type": "x"}}.items():
        touch(tmp_path / name / "a.mp4")
        digests.append(read_jsonl(write_lines(tmp_path / name / "q.jsonl", record(**changes))).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    (tmp_path / "a" / "a.mp4").write_bytes(b"another")
    assert read_jsonl(tmp_path / "a" / "q.jsonl").digest != digests[0]


def gpt_zero_shot(folder: Path, names: list[str], videos: str) -> Path:
    ids = [f"v_{name}_{i}" for i, name in enumerate(names)]
    questions = [
        {"video_name": name, "question_id": i, "question": "what is it"} for name, i in zip(names, ids, strict=True)
    ]
    answers = [{"answer": "dog", "type": n % 2, "question_id": i} for n, i in enumerate(ids)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test_q.json").write_text(json.dumps(questions))
    (folder / "test_a.json").write_text(json.dumps(answers))
    (folder / videos).mkdir()
    return folder


def test_gpt_zero_shot_with_every_extension(tmp_path: Path) -> None:
    folder = gpt_zero_shot(tmp_path / "MSVD_Zero_Shot_QA", ["one", "two", "three.x"], "videos")
    touch(folder / "videos/one.mp4", folder / "videos/two.avi", folder / "videos/three.x.mkv")
    dataset = open_dataset(f"gpt-zero-shot:{folder}")
    assert [dataset.video_name(s) for s in dataset.samples] == [
        "videos/one.mp4",
        "videos/two.avi",
        "videos/three.x.mkv",
    ]
    assert [(s.question_id, s.answer, s.kind) for s in dataset.samples[:2]] == [
        ("v_one_0", "dog", "0"),
        ("v_two_1", "dog", "1"),
    ]
    assert dataset.name == "MSVD_Zero_Shot_QA"


def test_activitynet_has_a_prefix_and_another_folder(tmp_path: Path) -> None:
    folder = gpt_zero_shot(tmp_path / "Activitynet_Zero_Shot_QA", ["abc"], "all_test")
    touch(folder / "all_test/v_abc.mkv")
    assert open_dataset(f"gpt-zero-shot:{folder}").videos == (folder / "all_test/v_abc.mkv",)


def test_questions_and_answers_must_belong_together(tmp_path: Path) -> None:
    folder = gpt_zero_shot(tmp_path / "x", ["one", "two"], "videos")
    answers = json.loads((folder / "test_a.json").read_text())
    (folder / "test_a.json").write_text(json.dumps(answers[::-1]))
    with pytest.raises(InvalidInputError, match="do not hold the same question ids"):
        read_gpt_zero_shot(folder)


def test_the_folder_above_all_four_names_them(tmp_path: Path) -> None:
    gpt_zero_shot(tmp_path / "MSVD_Zero_Shot_QA", ["one"], "videos")
    gpt_zero_shot(tmp_path / "TGIF_Zero_Shot_QA", ["one"], "videos")
    with pytest.raises(InvalidInputError, match="give one of MSVD_Zero_Shot_QA, TGIF_Zero_Shot_QA"):
        read_gpt_zero_shot(tmp_path)


def test_missing_gpt_zero_shot_videos(tmp_path: Path) -> None:
    folder = gpt_zero_shot(tmp_path / "x", ["one"], "videos")
    with pytest.raises(VideoNotFoundError, match=r"videos/one\.mp4; get GPT_Zero_Shot_QA"):
        open_dataset(f"gpt-zero-shot:{folder}")


def test_video_mme(tmp_path: Path) -> None:
    row = {
        "video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "History", "url": "https://…",
        "videoID": "fFjv93ACGo8", "question_id": "001-1", "task_type": "Counting Problem", "question": "How many?",
        "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."], "answer": "C",
    }  # fmt: skip
    path = write_lines(tmp_path / "test.jsonl", row)
    touch(tmp_path / "videos/fFjv93ACGo8.mp4")
    (sample,) = open_dataset(f"videomme:{path}").samples
    assert (sample.video.name, sample.question_id, sample.kind) == ("fFjv93ACGo8.mp4", "001-1", "Counting Problem")
    assert (sample.choices, sample.answer) == (("One.", "Two.", "Three.", "Four."), "C")


def test_mvbench(tmp_path: Path) -> None:
    entry = {"video": "a.mp4", "question": "Which?", "candidates": ["left", "right"], "answer": "right"}
    path = tmp_path / "moving_direction.json"
    path.write_text(json.dumps([entry, entry]))
    touch(tmp_path / "a.mp4")
    first, second = open_dataset(f"mvbench:{path}").samples
    assert (first.question_id, second.question_id) == ("moving_direction-0", "moving_direction-1")
    assert (first.kind, first.choices, first.answer) == ("moving_direction", ("left", "right"), "B")
    touch(tmp_path / "videos/a.mp4")
    assert read_mvbench(path).samples[0].video == tmp_path / "videos/a.mp4"


def test_mvbench_clips_must_be_cut_out_first(tmp_path: Path) -> None:
    entry = {"video": "a.mp4", "question": "?", "candidates": ["x", "y"], "answer": "x", "start": 1.5, "end": 3}
    path = write_lines(tmp_path / "action_sequence.jsonl", entry)
    with pytest.raises(InvalidInputError, match=r"from 1\.5 s to 3 s: cut"):
        read_mvbench(path)


def test_options_without_letters_keep_their_first_words(tmp_path: Path) -> None:
    row = {"videoID": "x", "question_id": "1", "question": "?", "options": ["A. x", "no letter"], "answer": "A"}
    (sample,) = read_video_mme(write_lines(tmp_path / "t.jsonl", row)).samples
    assert sample.choices == ("A. x", "no letter")


@pytest.mark.parametrize("name", ["mini", "mini-ood"])
def test_the_mini_benchmark_knows_where_its_objects_are(name: str, tmp_path: Path) -> None:
    dataset = open_dataset(name, limit=2, cache_dir=tmp_path)
    assert (dataset.name, len(dataset.videos)) == (name, 2)
    assert all(path.is_file() and tmp_path in path.parents for path in dataset.videos)
    assert dataset.coverage is not None
    covered = dataset.coverage(dataset.video_name(dataset.samples[0]), (0.0, 1.0, 2.0), (8, 8))
    assert covered.shape == (3, 64)
    assert covered.max() > 0.5
    assert (covered == 0).mean() > 0.25
    assert open_dataset(name, limit=2, cache_dir=tmp_path).digest == dataset.digest


def test_videos_elsewhere_keep_their_whole_name(tmp_path: Path) -> None:
    sample = Sample(tmp_path / "elsewhere" / "v.mp4", "1", "q", "a", "k")
    dataset = Dataset("x", Path("/nowhere"), (sample,))
    assert dataset.video_name(sample) == sample.video.as_posix()
