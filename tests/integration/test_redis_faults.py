"""Redis as it should not be, under a service that has nothing else: no token is kept in any process.

Each answer is compared with that of the service beside, whose Redis is well.
"""

import concurrent.futures
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from fastervlm_video.cache.header import FORMAT_VERSION
from tests.cache.samples import put_together, take_apart
from tests.integration.conftest import Service
from tests.integration.external_redis import Faulty, faulty_application, stopped
from tests.integration.scrape import settled, wait_for_growth
from tests.services.live import wait_until

HANG_SECONDS = 10.0
EXCHANGE_SECONDS = 0.25 + 0.5
"""To connect, and to have an answer: the limits of one exchange with Redis."""
EXCHANGES = 5
"""Most of them that a request waits for in turn: probe; read; claim, probe; write."""
SLACK_SECONDS = 15.0
FAILURES_TO_OPEN, COOL_DOWN_SECONDS = 3, 5.0


@pytest.fixture(scope="module")
def application(service: Service) -> Iterator[Faulty]:
    with faulty_application(service) as running:
        yield running


@pytest.fixture
def faulty(application: Faulty) -> Faulty:
    """The application with a Redis that is well, and empty."""
    application.recover()
    application.redis.client.flushall()
    application.asked.clear()
    return application


@pytest.fixture
def pool() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        yield threads


def test_every_question_on_a_cached_video_reaches_redis(faulty: Faulty) -> None:
    """Otherwise nothing below would show anything."""
    file_id, _ = faulty.known_file()
    probes, reads = faulty.calls("hstrlen"), faulty.calls("hget")
    for _ in range(3):
        assert faulty.ask(file_id)["video"]["cache"] == "hit"
    assert faulty.calls("hstrlen") == probes + 3
    assert faulty.calls("hget") == reads + 2 * 3


def test_killed_before_and_after_a_request(faulty: Faulty) -> None:
    (known, answer), new, before = faulty.known_file(), faulty.new_file(), settled()
    with faulty.redis.killed():
        for _ in range(3):
            found = faulty.ask(known)
            assert (found["answer"], found["video"]["cache"]) == (answer, "miss")
        assert faulty.ask(new)["answer"] == faulty.truth(new)
    assert "failed to probe: ConnectionError" in faulty.log("Api")
    assert "failed to put: ConnectionError" in faulty.log("Encoder")
    for stage in ("Api", "Encoder"):
        wait_for_growth(before, "fastervlm_cache_errors_total", application="faults", deployment=stage)
    faulty.recover()
    assert [faulty.ask(known)["video"]["cache"] for _ in range(2)] == ["miss", "hit"]
    assert faulty.ask(known)["answer"] == answer


def test_killed_while_a_video_is_encoded(faulty: Faulty, pool: concurrent.futures.ThreadPoolExecutor) -> None:
    new = faulty.new_file()
    with stopped(*faulty.sandboxes()):
        call = pool.submit(faulty.ask, new)
        wait_until(lambda: bool(faulty.claims()))
        faulty.redis.kill()
    try:
        assert call.result()["answer"] == faulty.truth(new)
    finally:
        faulty.redis.start()


def test_killed_between_probe_and_read(faulty: Faulty, pool: concurrent.futures.ThreadPoolExecutor) -> None:
    known, answer = faulty.known_file()
    probes = faulty.calls("hstrlen")
    with stopped(*faulty.replicas("Generator")):
        call = pool.submit(faulty.ask, known)
        wait_until(lambda: faulty.calls("hstrlen") > probes)
        faulty.redis.kill()
    try:
        found = call.result()
    finally:
        faulty.redis.start()
    assert (found["answer"], found["video"]["cache"]) == (answer, "miss")
    assert "failed to get" in faulty.log("Generator")


def test_hung_for_ten_seconds(faulty: Faulty) -> None:
    (known, answer), new, before = faulty.known_file(), faulty.new_file(), settled()
    truth, usual_seconds, failed = faulty.truth(new), max(faulty.asked), faulty.log("*").count(" failed to ")
    begin = time.monotonic()
    with faulty.redis.hung():
        assert faulty.ask(new)["answer"] == truth
        while time.monotonic() < begin + HANG_SECONDS:
            found = faulty.ask(known)
            assert (found["answer"], found["video"]["cache"]) == (answer, "miss")
        assert faulty.redis.status() == psutil.STATUS_STOPPED
    waited = faulty.log("*").count(" failed to ") - failed
    assert max(faulty.asked) < usual_seconds + EXCHANGES * EXCHANGE_SECONDS + SLACK_SECONDS
    # However slow this machine is: most requests did not wait for Redis at all.
    per_replica = FAILURES_TO_OPEN + 1 + (time.monotonic() - begin) / COOL_DOWN_SECONDS
    assert 1 <= waited <= 4 * (per_replica + FAILURES_TO_OPEN)
    assert "circuit open" in faulty.log("Api")
    wait_for_growth(before, "fastervlm_cache_errors_total", application="faults", deployment="Api")
    faulty.recover()
    assert [faulty.ask(known)["video"]["cache"] for _ in range(2)][-1] == "hit"
    assert faulty.ask(known)["answer"] == answer


def test_full(faulty: Faulty) -> None:
    (known, answer), new, before = faulty.known_file(), faulty.new_file(), settled()
    client: Any = faulty.redis.client
    whole = client.config_get("maxmemory*")
    try:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
        for _ in range(2):
            found = faulty.ask(new)
            assert (found["answer"], found["video"]["cache"]) == (faulty.truth(new), "miss")
        found = faulty.ask(known)  # what is there can still be read
        assert (found["answer"], found["video"]["cache"]) == (answer, "hit")
    finally:
        for name in ("maxmemory", "maxmemory-policy"):
            client.config_set(name, whole[name])
    assert "OOM command not allowed" in faulty.log("Encoder")
    assert "OOM command not allowed" in faulty.log("Api")
    wait_for_growth(before, "fastervlm_cache_errors_total", 2, application="faults", deployment="Encoder")
    assert [faulty.ask(new)["video"]["cache"] for _ in range(2)] == ["miss", "hit"]


def _flip(blob: bytes, at: int) -> bytes:
    at %= len(blob)
    return blob[:at] + bytes([blob[at] ^ 0x10]) + blob[at + 1 :]


def _rewrite(edit: Callable[[bytes], bytes], *fields: str) -> Callable[[Any, str, str, str], None]:
    """Replace the header, the whole entry, or both by something made of them."""

    def damage(client: Any, name: str, head: str, body: str) -> None:
        for field in (head if field == "header" else body for field in fields):
            client.hset(name, field, edit(client.hget(name, field)))

    return damage


def _another_type(make: Callable[[Any, str], object]) -> Callable[[Any, str, str, str], None]:
    def damage(client: Any, name: str, head: str, body: str) -> None:
        client.delete(name)
        make(client, name)

    return damage


def _next_version(client: Any, name: str, head: str, body: str) -> None:
    """As a newer release may write it: everything fits, but for the number."""
    text, payload = _text_and_payload(client.hget(name, body))
    blob = put_together(text, payload, version=FORMAT_VERSION + 1)
    client.hset(name, mapping={head: blob[: len(blob) - len(payload)], body: blob})


def _text_and_payload(blob: bytes) -> tuple[bytes, bytes]:
    _, payload = take_apart(blob)
    return blob[len(put_together(b"", b"")) : len(blob) - len(payload)], payload


DAMAGES: dict[str, Callable[[Any, str, str, str], None]] = {
    "a bit of the features flipped": _rewrite(lambda blob: _flip(blob, len(blob) // 2), "entry"),
    "the last byte's bit flipped": _rewrite(lambda blob: _flip(blob, -1), "entry"),
    "a bit of the entry's header flipped": _rewrite(lambda blob: _flip(blob, 60), "entry"),
    "a bit of the probed header flipped": _rewrite(lambda blob: _flip(blob, 60), "header"),
    "truncated entry": _rewrite(lambda blob: blob[: len(blob) // 2], "entry"),
    "truncated header": _rewrite(lambda blob: blob[:20], "header"),
    "emptied": _rewrite(lambda blob: b"", "header", "entry"),
    "not ours": _rewrite(lambda blob: b"\x80\x05" + bytes(len(blob)), "header", "entry"),
    "only the header left": lambda client, name, head, body: client.hdel(name, body),
    "only the entry left": lambda client, name, head, body: client.hdel(name, head),
    "another version": _next_version,
    "a string under our key": _another_type(lambda client, name: client.set(name, b"hello")),
    "a list under our key": _another_type(lambda client, name: client.rpush(name, b"hello", b"you")),
}
SILENT = {"only the entry left"}  # looks like no entry at all, and is written over


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_values_are_made_anew(faulty: Faulty, damage: str) -> None:
    known, answer = faulty.known_file()
    complaints = _complaints(faulty)
    DAMAGES[damage](faulty.redis.client, *faulty.entry())
    found = [faulty.ask(known) for _ in range(2)]
    assert [one["answer"] for one in found] == [answer] * 2
    assert [one["video"]["cache"] for one in found] == ["miss", "hit"]
    assert (_complaints(faulty) > complaints) is (damage not in SILENT)


def _complaints(faulty: Faulty) -> int:
    log = faulty.log("*")
    return log.count("unusable entry") + log.count("was not a hash of this cache")


def test_damage_is_counted(faulty: Faulty) -> None:
    (known, _), before = faulty.known_file(), settled()
    DAMAGES["a bit of the features flipped"](faulty.redis.client, *faulty.entry())
    faulty.ask(known)
    for name in ("misses", "errors"):
        wait_for_growth(before, f"fastervlm_cache_{name}_total", application="faults", deployment="Generator")


def test_a_claim_deleted_while_held_costs_work_and_no_answer(
    faulty: Faulty, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    new, client = faulty.new_file(), faulty.redis.client
    truth = faulty.truth(new)
    with stopped(*faulty.sandboxes()):
        calls = [pool.submit(faulty.ask, new)]
        wait_until(lambda: bool(faulty.claims()))
        ((name, first_owner),) = faulty.claims().items()
        calls += [pool.submit(faulty.ask, new) for _ in range(7)]

        def is_taken_over() -> bool:
            owner = faulty.claims().get(name)
            if owner == first_owner:  # it renews what it believes to have
                client.delete(name)
            return owner not in {None, first_owner}

        wait_until(is_taken_over)
        # The second maker decodes in a process that is not stopped.
        concurrent.futures.wait(calls, return_when=concurrent.futures.FIRST_COMPLETED)
    assert [call.result()["answer"] for call in calls] == [truth] * len(calls)
    assert faulty.ask(new)["video"]["cache"] == "hit"


def test_an_encoder_killed_over_its_work_is_replaced(
    faulty: Faulty, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    new, decoded = faulty.new_file(), faulty.log("Decoder").count("decoded ")
    (encoder,) = faulty.replicas("Encoder")
    encoder.suspend()
    calls = [pool.submit(faulty.ask, new) for _ in range(4)]
    wait_until(lambda: faulty.log("Decoder").count("decoded ") > decoded)
    encoder.kill()
    assert [call.result()["answer"] for call in calls] == [faulty.truth(new)] * len(calls)


def test_a_leader_killed_while_it_holds_the_claim(faulty: Faulty, pool: concurrent.futures.ThreadPoolExecutor) -> None:
    """Everybody is answered, once the dead one's claim has lapsed: who asked another Api replica, and who asked the
    dead one, whose questions the proxy puts to another.
    """
    new = faulty.new_file()
    truth = faulty.truth(new)
    with faulty.redis.client.monitor() as monitor, stopped(*faulty.sandboxes()):
        calls = [pool.submit(faulty.ask, new)]
        leader = faulty.who_claims(monitor)
        calls += [pool.submit(faulty.ask, new) for _ in range(9)]
        assert any(faulty.who_claims(monitor) != leader for _ in range(200))  # somebody waits for it
        psutil.Process(leader).kill()
    assert [call.result()["answer"] for call in calls] == [truth] * len(calls)
