"""Questions over HTTP: answers, cache, streaming, and that they are the library's own."""

import concurrent.futures
import time
from typing import Any

import httpx
import pytest

from fastervlm_video import VideoQA
from fastervlm_video.config import FrameSampling, PruneSpec, SamplingParams
from tests.integration.conftest import TIMEOUT_SECONDS, Service, read_events


def test_an_answer_says_what_was_done(service: Service) -> None:
    file_id = service.upload(service.new_video())
    cold, warm = (service.answer(file_id=file_id, keep_ratio=0.25) for _ in range(2))
    video = cold["video"]
    assert cold["model"] == "fastervlm-video/mini"
    assert cold["finish_reason"] in {"stop", "length"}
    assert (video["frames"], video["tokens_full"], video["tokens_kept"]) == (8, 8 * 64, 8 * 16)
    assert video["tokens_per_frame"] == [16] * 8
    assert video["frame_seconds"] == sorted(video["frame_seconds"])
    assert len(video["frame_seconds"]) == 8
    assert video["cache"] == "miss"
    assert {"fetch", "decode", "encode", "first_token", "generate", "total"} == video["seconds"].keys()
    assert warm["video"]["cache"] == "hit"
    assert not {"decode", "encode"} & warm["video"]["seconds"].keys()
    assert warm["answer"] == cold["answer"]
    assert cold["usage"]["total_tokens"] == cold["usage"]["prompt_tokens"] + cold["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    "options",
    [
        {"keep_ratio": 0.1},
        {"keep_tokens": 26, "num_frames": 4},
        {"keep_ratio": 1.0, "keep_cls": True, "num_frames": 3},
        {"method": "random", "keep_ratio": 0.2},
        {"method": "uniform_grid", "keep_tokens": 5},
    ],
    ids=str,
)
def test_answers_are_the_librarys(service: Service, library: VideoQA, options: dict[str, Any]) -> None:
    content = service.new_video()
    answer = service.answer(file_id=service.upload(content), max_tokens=10, **options)
    prune = PruneSpec(**{name: value for name, value in options.items() if name != "num_frames"})
    video = library.encode_video(content, prune=prune, sampling=FrameSampling(options.get("num_frames", 8)))
    expected = library.ask(video, "What is it?", SamplingParams(max_tokens=10))
    assert answer["answer"] == expected.text
    assert answer["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert answer["video"]["tokens_per_frame"] == list(video.tokens.counts)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> VideoQA:
    return VideoQA.from_pretrained("mini")


def test_a_smaller_budget_is_a_slice_and_a_larger_one_is_not(service: Service) -> None:
    file_id = service.upload(service.new_video())
    states = []
    answers: dict[int, str] = {}
    for keep in (12, 5, 12, 30, 12):
        answer = service.answer(file_id=file_id, keep_tokens=keep)
        states.append(answer["video"]["cache"])
        assert answers.setdefault(keep, answer["answer"]) == answer["answer"]
    assert states == ["miss", "hit", "hit", "miss", "hit"]


def test_video_with_the_question(service: Service) -> None:
    content = service.new_video()
    form = {"question": "What is it?", "keep_tokens": "4", "max_tokens": "6", "stream": "false"}
    first = service.client.post("/v1/ask", data=form, files={"file": ("a.mp4", content)})
    assert first.status_code == 200, first.text
    again = service.answer(file_id=first.json()["video"]["file_id"], keep_tokens=4)
    assert again["video"]["cache"] == "hit"
    assert again["answer"] == first.json()["answer"]


def test_streamed_answer_is_the_same(service: Service) -> None:
    file_id = service.upload(service.new_video())
    body = {"file_id": file_id, "question": "What is it?", "max_tokens": 12, "stream": True}
    with service.client.stream("POST", "/v1/ask", json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        events = read_events(response)
    names = [name for name, _ in events]
    assert names[0] == "video"
    assert names[-1] == "done"
    assert set(names[1:-1]) == {"delta"}
    text = "".join(data["text"] for name, data in events if name == "delta")
    assert text == events[-1][1]["answer"] == service.answer(file_id=file_id, max_tokens=12)["answer"]
    assert events[0][1]["tokens_kept"] == events[-1][1]["video"]["tokens_kept"]


def test_early_errors_of_a_stream_keep_their_status(service: Service) -> None:
    garbage = service.upload(b"this is no video" * 100)
    answer = service.ask(file_id=garbage, stream=True)
    assert answer.status_code == 415, answer.text
    assert answer.json()["error"]["code"] == "unsupported_media"
    assert service.ask(file_id="file-" + "0" * 64, stream=True).status_code == 404


def test_sampling_is_repeatable_by_seed(service: Service) -> None:
    file_id = service.upload(service.new_video())
    options = {"file_id": file_id, "question": "What happens?", "temperature": 2.0, "max_tokens": 20}
    answers = [service.answer(seed=seed, **options)["answer"] for seed in (1, 1, *range(2, 10))]
    assert answers[0] == answers[1]
    assert len(set(answers)) > 1


def test_many_questions_about_one_new_video_cost_one_encode(service: Service) -> None:
    file_id = service.upload(service.new_video(num_frames=96))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        calls = [
            pool.submit(service.answer, file_id=file_id, question=f"What is it {word}?", num_frames=16)
            for word in ("up", "down", "left", "right", "first", "last", "before", "after")
        ]
        answers = [call.result() for call in calls]
    misses = [answer["video"]["seconds"] for answer in answers if answer["video"]["cache"] == "miss"]
    # Times of one decode and one encode, to the last digit: whoever did not wait for them found them cached.
    assert len({(seconds["decode"], seconds["encode"]) for seconds in misses}) == 1


def test_a_leader_that_leaves_does_not_fail_its_followers(service: Service) -> None:
    file_id = service.upload(service.new_video(num_frames=400, size=320))
    body = {"file_id": file_id, "question": "What is it?", "max_tokens": 6, "num_frames": 64}

    def leave_early() -> None:
        with httpx.Client(base_url=service.url, timeout=0.25) as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/ask", json=body)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        leader = pool.submit(leave_early)
        time.sleep(0.1)
        follower = pool.submit(service.client.post, "/v1/ask", json=body)
        leader.result(TIMEOUT_SECONDS)
        answer = follower.result(TIMEOUT_SECONDS)
    assert answer.status_code == 200, answer.text
    assert answer.json()["video"]["cache"] == "miss"
