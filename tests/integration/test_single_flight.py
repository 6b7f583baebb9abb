"""Many questions for one video that nobody has asked about: it is decoded and encoded once. Counted by metrics."""

import concurrent.futures
from typing import Any

from tests.integration.conftest import MAX_IN_FLIGHT, Service
from tests.integration.scrape import Scrape, settled, wait_for_growth

APP = {"application": "fastervlm-video"}
COLORS_AND_MORE = (
    *(
        f"Is there a {color} circle?"
        for color in ("red", "green", "blue", "yellow", "purple", "orange", "white", "gray")
    ),
    *(f"What color is the {shape}?" for shape in ("circle", "square", "triangle", "star")),
    *(f"How many {thing} are there?" for thing in ("objects", "circles", "squares", "stars")),
)
QUESTIONS = [f"{question}{end}" for question in COLORS_AND_MORE for end in ("", " Why?")]


def _ask_all(service: Service, file_id: str) -> list[dict[str, Any]]:
    with concurrent.futures.ThreadPoolExecutor(len(QUESTIONS)) as pool:
        return list(pool.map(lambda question: service.answer(file_id=file_id, question=question), QUESTIONS))


def test_32_questions_on_a_new_video_cost_one_decode_and_one_encode(service: Service) -> None:
    assert len(set(QUESTIONS)) == 32 <= MAX_IN_FLIGHT
    file_id, other = service.upload(service.new_video()), service.upload(service.new_video())
    before = settled()
    answers = _ask_all(service, file_id)
    # What a replica has counted arrives in order: with this one, all that was before it is there.
    assert service.answer(file_id=other)["video"]["cache"] == "miss"
    for done in ("decoded", "encoded"):
        now = wait_for_growth(before, f"fastervlm_{done}_videos_total", 2, **APP)
        for unit, amount in (("videos", 1), ("frames", 8)):
            name = f"fastervlm_{done}_{unit}_total"
            assert now.total(name, **APP) - before.total(name, **APP) == 2 * amount
    _both_api_replicas_had_some(before)
    again = [service.answer(file_id=file_id, question=question) for question in QUESTIONS]
    assert [one["answer"] for one in answers] == [one["answer"] for one in again]
    assert {one["video"]["cache"] for one in again} == {"hit"}
    assert len({one["answer"] for one in answers}) > 3  # they were told apart


def _both_api_replicas_had_some(before: Scrape) -> None:
    """The claim in the cache has then been needed, too, besides the flights within each of them."""
    now = wait_for_growth(before, "fastervlm_answers_total", len(QUESTIONS) + 1, **APP)
    grown = {
        sample.labels["replica"]
        for sample in now.select("fastervlm_answers_total", **APP)
        if sample.value > before.total(sample.name.removeprefix("ray_"), **sample.labels)
    }
    assert len(grown) == 2
