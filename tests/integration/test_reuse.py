"""What a second question on a video does not compute again, over HTTP."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from ray import serve

from services.app import build_app
from services.settings import load_settings
from tests.integration.conftest import TIMEOUT_SECONDS, Service

FRAMES = 8
PAGE = 16
QUESTIONS = ("What color is the circle?", "How many objects are there?", "Which object appears first?")


def whole_pages(before: int, visual: int) -> int:
    return (before + visual) // PAGE * PAGE


@pytest.mark.parametrize("keep_tokens", [13, 26])
def test_a_second_question_reuses_the_first_ones_pages(service: Service, keep_tokens: int) -> None:
    """At 104 and 208 visual tokens; ``<s> USER :`` stand before them."""
    file_id = service.upload(service.new_video())
    cold, *warm = [service.answer(file_id=file_id, question=q, keep_tokens=keep_tokens) for q in QUESTIONS]
    assert cold["video"]["tokens_kept"] == FRAMES * keep_tokens
    assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    for answer in warm:
        assert answer["video"]["cache"] == "hit"
        reused = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert reused == whole_pages(3, FRAMES * keep_tokens)
    again = service.answer(file_id=file_id, question=QUESTIONS[0], keep_tokens=keep_tokens)
    assert again["answer"] == cold["answer"]


def test_another_video_or_budget_reuses_nothing(service: Service) -> None:
    first, second = (service.upload(service.new_video()) for _ in range(2))
    for file_id, keep_tokens in ((first, 13), (second, 13), (first, 14)):
        answer = service.answer(file_id=file_id, question=QUESTIONS[0], keep_tokens=keep_tokens)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.fixture(scope="module")
def two_generators(service: Service) -> Iterator[str]:
    """A second application beside the service, with two replicas of the Generator; gives its prefix."""
    settings = load_settings(
        runtime_dir=service.settings.runtime_dir,
        api={"num_cpus": 0.1},
        generator={"min_replicas": 2, "max_replicas": 2, "max_ongoing_requests": 2, "num_cpus": 0.1},
    )
    serve.run(build_app(settings), name="pair", route_prefix="/pair")
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while service.client.get("/pair/readyz").status_code != 200:
        assert time.monotonic() < deadline, serve.status()
        time.sleep(0.2)
    yield "/pair"
    serve.delete("pair")


def reused_tokens(service: Service, prefix: str, file_id: str, question: str) -> int:
    body: dict[str, Any] = {"file_id": file_id, "question": question, "keep_tokens": 13, "max_tokens": 4}
    answer = service.client.post(f"{prefix}/v1/ask", json=body)
    assert answer.status_code == 200, answer.text
    cached: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


def test_questions_on_a_video_go_to_the_replica_that_knows_it(service: Service, two_generators: str) -> None:
    """By chance, half of the second questions would meet the other replica and reuse nothing."""
    files = [service.upload(service.new_video()) for _ in range(8)]

    def reused(file_id: str, question: str) -> int:
        return reused_tokens(service, two_generators, file_id, question)

    assert [reused(file_id, QUESTIONS[0]) for file_id in files] == [0] * len(files)
    for question in QUESTIONS[1:]:
        assert [reused(file_id, question) for file_id in files] == [whole_pages(3, 8 * 13)] * len(files)


def test_what_is_too_much_for_that_replica_goes_to_the_next(service: Service, two_generators: str) -> None:
    """Each takes two at a time. Each computes the video once, which is seen from who reused nothing."""
    file_id = service.upload(service.new_video())
    questions = [f"{question} {'please ' * number}" for question in QUESTIONS for number in range(5)]
    with ThreadPoolExecutor(len(questions)) as pool:
        ask = partial(reused_tokens, service, two_generators, file_id)
        reused = sorted(pool.map(ask, questions))
    assert reused[:2] == [0, 0]
    assert reused[2] >= whole_pages(3, 8 * 13)  # more if the questions begin alike
