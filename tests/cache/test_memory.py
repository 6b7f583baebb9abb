import threading

import pytest

from fastervlm_video.cache import MemoryStore, StoredHeader
from fastervlm_video.cache.memory import ENTRY_OVERHEAD_BYTES
from fastervlm_video.errors import InvalidRequestError
from tests.cache.samples import make_cache_key

ROOM = ENTRY_OVERHEAD_BYTES + 11  # one entry of 10 bytes with a header of 1


def test_least_recently_used_gives_way() -> None:
    store = MemoryStore(2 * ROOM)
    first, second, third = (make_cache_key(variant=digit) for digit in "123")
    for key in (first, second):
        assert store.put(key, b"0123456789", b"h")
    assert store.get(first) == b"0123456789"
    assert store.put(third, b"0123456789", b"h")
    assert [store.get(key) is not None for key in (first, second, third)] == [True, False, True]
    assert store.size_bytes == 2 * ROOM


def test_replacing_keeps_the_count_right() -> None:
    store, key = MemoryStore(10 * ROOM), make_cache_key()
    store.put(key, b"0123456789", b"h")
    store.put(key, b"01234", b"h")
    assert store.size_bytes == ROOM - 5
    assert store.get(key) == b"01234"
    assert store.get_header(key) == StoredHeader(b"h", 5)
    assert store.discard(key)
    assert not store.discard(key)
    assert (store.size_bytes, store.get(key), store.get_header(key)) == (0, None, None)


def test_entry_larger_than_the_room_evicts_nothing() -> None:
    store = MemoryStore(ROOM)
    store.put(make_cache_key(), b"0123456789", b"h")
    assert not store.put(make_cache_key(variant="2"), b"0123456789+", b"h")
    assert store.get(make_cache_key()) == b"0123456789"


def test_keep_decides_over_the_entry_in_the_way() -> None:
    store, key = MemoryStore(10 * ROOM), make_cache_key()
    seen: list[StoredHeader] = []

    def keep(stored: StoredHeader) -> bool:
        seen.append(stored)
        return stored.header == b"old"

    assert store.put(key, b"12", b"old", keep=keep)
    assert not store.put(key, b"3", b"new", keep=keep)
    assert store.get(key) == b"12"
    assert seen == [StoredHeader(b"old", 2)]


def test_a_videos_entries_go_together_and_no_others() -> None:
    store = MemoryStore(100 * ROOM)
    for variant in "123":
        store.put(make_cache_key("a", variant), b"x", b"h")
    store.put(make_cache_key("c", "1"), b"x", b"h")
    assert store.delete_video("a" * 64) == 3
    assert store.delete_video("a" * 64) == 0
    assert store.get(make_cache_key("c", "1")) == b"x"


def test_entries_expire() -> None:
    now = [0.0]
    store = MemoryStore(10 * ROOM, ttl_seconds=5, clock=lambda: now[0])
    key = make_cache_key()
    store.put(key, b"x", b"h")
    now[0] = 4.9
    assert store.get(key) == b"x"
    now[0] = 5.0
    assert (store.get(key), store.get_header(key), store.size_bytes) == (None, None, 0)
    store.put(key, b"y", b"h")
    now[0] = 100
    assert store.delete_video(key.video) == 0


def test_the_bound_holds_under_threads() -> None:
    store = MemoryStore(5 * ROOM)

    def work(worker: int) -> None:
        for step in range(300):
            key = make_cache_key("abc"[step % 3], "0123456789"[(step + worker) % 10])
            store.put(key, b"0123456789", b"h")
            store.get(key)
            if step % 7 == 0:
                store.delete_video(key.video)
            assert store.size_bytes <= 5 * ROOM

    errors: list[BaseException] = []

    def guarded(worker: int) -> None:
        try:
            work(worker)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for video in "abc":
        store.delete_video(video * 64)
    assert store.size_bytes == 0
    assert not store._variants  # videos come and go for ever; their names must not stay


def test_bounds_must_be_positive() -> None:
    with pytest.raises(InvalidRequestError, match="max_bytes=0"):
        MemoryStore(0)
    with pytest.raises(InvalidRequestError, match="ttl_seconds=0"):
        MemoryStore(1, ttl_seconds=0)
