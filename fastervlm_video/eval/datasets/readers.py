"""The file formats of evaluation data sets.

Own data, and the mini benchmark (``read_jsonl``): JSON Lines beside the videos, one question per line::

    {"video": "videos/0000.mp4", "id": "0-1", "question": "What moves?", "answer": "red", "type": "color"}

``video`` is relative to the file's folder; ``type`` may be left out (``all``). With ``"choices": ["red", "blue"]`` the
question is multiple choice and ``answer`` is a letter or one of the texts.

The other formats are those in which public data sets are distributed; where one comes as Parquet, write each row as
a line of JSON.
"""

from pathlib import Path

from fastervlm_video.errors import InvalidInputError
from fastervlm_video.eval.datasets.records import Record, read_records
from fastervlm_video.eval.datasets.sample import Dataset, Sample

__all__ = ["read_gpt_zero_shot", "read_jsonl", "read_mvbench", "read_video_mme"]

_ANY_KIND = "all"
_EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
_ACTIVITYNET_PREFIX = "v_"
_GPT_ZERO_SHOT_SOURCE = (
    "get GPT_Zero_Shot_QA (questions, answers, videos) as https://github.com/PKU-YuanGroup/Video-LLaVA describes"
)
_VIDEO_MME_SOURCE = (
    "get the questions and videos from https://huggingface.co/datasets/lmms-lab/Video-MME and put the videos into "
    "the folder 'videos' beside the questions"
)
_MVBENCH_SOURCE = (
    "get the questions and videos from https://huggingface.co/datasets/OpenGVLab/MVBench and put the videos beside "
    "the questions or into a folder 'videos' there"
)


def read_jsonl(path: Path, *, name: str | None = None) -> Dataset:
    """Own data, in the format above.

    Raises:
        InvalidInputError: the file is missing or damaged.
    """

    def sample(record: Record) -> Sample:
        answer, choices = record.text("answer"), None
        if record.has("choices"):
            answer, choices = record.choices("choices", "answer")
        video = path.parent / record.text("video")
        kind = record.text("type", _ANY_KIND)
        return Sample(video, record.text("id"), record.text("question"), answer, kind, choices)

    return Dataset(name or path.stem, path.parent, tuple(sample(record) for record in read_records(path)))


def read_gpt_zero_shot(folder: Path) -> Dataset:
    """MSVD, MSRVTT, TGIF or ActivityNet as Video-LLaVA is evaluated on them.

    Args:
        folder: holds ``test_q.json``, ``test_a.json`` and the videos in ``videos/`` (ActivityNet: ``all_test/``).

    Raises:
        InvalidInputError: a file is missing or damaged, or questions and answers do not belong together.
    """
    source = _GPT_ZERO_SHOT_SOURCE
    inside = sorted(path.name for path in folder.glob("*_Zero_Shot_QA"))
    if inside:
        source = f"this folder holds several data sets: give one of {', '.join(inside)}"
    questions = read_records(folder / "test_q.json", source)
    answers = read_records(folder / "test_a.json", source)
    if [q.text("question_id") for q in questions] != [a.text("question_id") for a in answers]:
        raise InvalidInputError(f"{folder}: test_q.json and test_a.json do not hold the same question ids in order")
    videos = next((folder / name for name in ("videos", "all_test") if (folder / name).is_dir()), folder / "videos")
    samples = tuple(
        Sample(
            _find_video(videos, question.text("video_name")),
            question.text("question_id"),
            question.text("question"),
            answer.text("answer"),
            answer.text("type", _ANY_KIND),
        )
        for question, answer in zip(questions, answers, strict=True)
    )
    return Dataset(folder.name, folder, samples, _GPT_ZERO_SHOT_SOURCE)


def read_video_mme(path: Path) -> Dataset:
    """Video-MME: rows with ``videoID``, ``question_id``, ``task_type``, ``question``, ``options``, ``answer``.

    Raises:
        InvalidInputError: the file is missing or damaged.
    """
    folder = path.parent / "videos"

    def sample(record: Record) -> Sample:
        answer, choices = record.choices("options", "answer")
        video = _find_video(folder, record.text("videoID" if record.has("videoID") else "video_id"))
        kind = record.text("task_type", _ANY_KIND)
        return Sample(video, record.text("question_id"), record.text("question"), answer, kind, choices)

    samples = tuple(sample(record) for record in read_records(path, _VIDEO_MME_SOURCE))
    return Dataset(f"Video-MME ({path.stem})", path.parent, samples, _VIDEO_MME_SOURCE)


def read_mvbench(path: Path) -> Dataset:
    """One task of MVBench: entries with ``video``, ``question``, ``candidates`` and ``answer`` (a text).

    Raises:
        InvalidInputError: the file is missing or damaged, or an entry means a part of its video only.
    """
    beside = path.parent / "videos"
    folder = beside if beside.is_dir() else path.parent

    def sample(index: int, record: Record) -> Sample:
        if record.has("start") or record.has("end"):
            raise InvalidInputError(
                f"{record.place} means the part of its video from {record.values.get('start')} s to "
                f"{record.values.get('end')} s: cut the clips out first (ffmpeg -ss START -to END -i IN OUT), and "
                "leave 'start' and 'end' out"
            )
        answer, choices = record.choices("candidates", "answer")
        identity = record.text("question_id", f"{path.stem}-{index}")
        kind = record.text("task_type", path.stem)
        return Sample(folder / record.text("video"), identity, record.text("question"), answer, kind, choices)

    records = read_records(path, _MVBENCH_SOURCE)
    samples = tuple(sample(index, record) for index, record in enumerate(records))
    return Dataset(f"MVBench ({path.stem})", path.parent, samples, _MVBENCH_SOURCE)


def _find_video(folder: Path, name: str) -> Path:
    """The file of that name, whatever its extension; the most likely one if there is none."""
    for stem in (name, f"{_ACTIVITYNET_PREFIX}{name}"):
        candidates = (folder / stem, *(folder / f"{stem}{extension}" for extension in _EXTENSIONS))
        found = next((path for path in candidates if path.is_file()), None)
        if found is not None:
            return found
    return folder / f"{name}{_EXTENSIONS[0]}"
