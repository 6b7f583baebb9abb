"""The table of visual tokens: what an id stands for, and for how long."""

import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.language.visual_table import IdsExhausted, VisualEmbedding, VisualRun, VisualTable

VOCABULARY, WIDTH, PAGE = 50, 6, 4


def make_table(pages: int = 5, *, generations: int = 1000) -> tuple[VisualTable, VisualEmbedding]:
    torch.manual_seed(0)
    embedding = VisualEmbedding(nn.Embedding(VOCABULARY, WIDTH), pages * PAGE)
    largest = VOCABULARY + generations * pages * PAGE - 1
    return VisualTable(embedding, page_rows=PAGE, largest_id=largest), embedding


def content(number: int, count: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(number))


def never() -> Tensor:
    raise AssertionError("these rows are there already")


def take(table: VisualTable, key: str | None, count: int, rows: Callable[[], Tensor] | None = None) -> VisualRun:
    run = table.acquire(key, count, rows or (lambda: content(0, count)))
    assert run is not None
    return run


def test_ids_are_looked_up_as_the_embeddings_they_stand_for_and_text_as_before() -> None:
    table, embedding = make_table()
    rows = content(1, 7)
    run = take(table, "a", 7, lambda: rows)
    before, after = torch.tensor([3, 49]), torch.tensor([0])
    ids = torch.cat([before, torch.tensor(run.ids), after])
    expected = torch.cat([embedding.text(before), rows, embedding.text(after)])
    for dtype in (torch.int64, torch.int32):
        assert torch.equal(embedding(ids.to(dtype)), expected)
        assert torch.equal(embedding(ids.to(dtype)[None]), expected[None])
    assert embedding.weight is embedding.text.weight


def test_ids_are_arithmetic() -> None:
    table, embedding = make_table(pages=2)
    first = take(table, None, 8)
    assert first.ids == tuple(range(VOCABULARY, VOCABULARY + 8))
    table.release(first)
    second = take(table, None, 3)
    assert second.ids == tuple(range(VOCABULARY + 8, VOCABULARY + 11))  # the next generation of the first page
    assert [(i - embedding.first_id) % embedding.rows for i in second.ids] == [0, 1, 2]


def test_no_id_ever_stands_for_something_else() -> None:
    """Random acquisitions, releases and evictions against a dictionary of all that was ever said."""
    for seed in range(20):
        rng = random.Random(seed)
        table, embedding = make_table(pages=6)
        meaning: dict[int, Tensor] = {}
        held: list[VisualRun] = []
        for step in range(150):
            action = rng.random()
            if action < 0.55:
                key = rng.choice([None, *"abcdefgh"])
                count = 1 + (ord(key) if key else rng.randrange(100)) % 11
                number = ord(key) if key else 1000 + step
                run = table.acquire(key, count, partial(content, number, count))
                if run is None:
                    continue
                for i, row in zip(run.ids, content(number, count), strict=True):
                    assert torch.equal(meaning.setdefault(i, row), row)
                held.append(run)
            elif action < 0.95 and held:
                table.release(held.pop(rng.randrange(len(held))))
            else:
                table.evict()
            for run in held:  # what is pinned can be looked up
                assert torch.equal(embedding(torch.tensor(run.ids)), torch.stack([meaning[i] for i in run.ids]))
        for run in held:
            table.release(run)
        table.evict()
        assert table.free_rows == table.rows
        assert table.pinned_runs == 0


def test_equal_keys_share_and_none_shares_with_nobody() -> None:
    table, _ = make_table()
    a = take(table, "a", 4)
    assert table.acquire("a", 4, never) is a
    assert a.pins == 2
    x, y = take(table, None, 4), take(table, None, 4)
    assert len({a.ids, x.ids, y.ids}) == 3
    table.release(x)
    assert table.free_rows == 3 * PAGE  # at once
    table.release(a)
    table.release(a)
    assert table.free_rows == 3 * PAGE  # kept
    assert table.acquire("a", 4, never) is a


def test_the_least_recently_used_goes_first_and_the_pinned_never() -> None:
    table, _ = make_table(pages=3)
    for key in "abc":
        table.release(take(table, key, PAGE))
    table.release(take(table, "a", PAGE, never))  # used again
    pinned = take(table, "b", PAGE, never)
    take(table, "d", PAGE)
    assert table.find("c") is None
    assert table.find("a") is not None
    take(table, "e", PAGE)
    assert table.find("a") is None
    assert table.acquire("f", PAGE, never) is None  # all pinned: no room, and nothing was made for nothing
    table.release(pinned)
    take(table, "f", PAGE)


def test_what_cannot_fit_evicts_nobody() -> None:
    table, _ = make_table(pages=3)
    take(table, "pinned", PAGE)
    table.release(take(table, "idle", PAGE))
    assert table.acquire("large", 3 * PAGE, never) is None
    assert table.find("idle") is not None


def test_rows_that_cannot_be_made_leave_no_trace() -> None:
    table, _ = make_table()

    def fail() -> Tensor:
        raise RuntimeError("the projector")

    with pytest.raises(RuntimeError, match="projector"):
        table.acquire("a", 9, fail)
    assert table.free_rows == table.rows
    assert table.find("a") is None


def test_zero_visual_tokens_need_no_row() -> None:
    table, _ = make_table(pages=1)
    take(table, None, PAGE)
    run = take(table, None, 0)
    assert run.ids == ()
    table.release(run)


def test_used_up_ids_are_said_to_be_and_renumbering_gives_them_back() -> None:
    table, embedding = make_table(pages=2, generations=3)
    seen: set[int] = set()
    for _ in range(6):
        run = take(table, None, PAGE)
        assert not seen & set(run.ids)
        assert max(run.ids) < VOCABULARY + 3 * embedding.rows
        seen |= set(run.ids)
        table.release(run)
    assert table.free_rows == 0
    with pytest.raises(IdsExhausted):
        table.acquire("a", 1, never)
    table.renumber()
    assert table.free_rows == table.rows
    assert take(table, "a", 1).ids == (VOCABULARY,)


def test_exhaustion_waits_for_what_is_pinned() -> None:
    table, _ = make_table(pages=2, generations=1)
    run = take(table, "a", PAGE)
    with pytest.raises(AssertionError, match="pinned"):
        table.renumber()
    take(table, "b", PAGE)
    assert table.acquire("c", PAGE, never) is None  # no room; that there are no ids either shows when there is
    table.release(run)
    with pytest.raises(IdsExhausted):
        table.acquire("c", PAGE, never)


@pytest.mark.parametrize(("rows", "page_rows"), [(0, 4), (6, 4), (4, 0)])
def test_rows_come_in_whole_pages(rows: int, page_rows: int) -> None:
    embedding = VisualEmbedding(nn.Embedding(VOCABULARY, WIDTH), rows)
    with pytest.raises(InvalidRequestError, match=f"{rows} rows"):
        VisualTable(embedding, page_rows=page_rows)


def test_ids_must_suffice_for_one_generation() -> None:
    embedding = VisualEmbedding(nn.Embedding(VOCABULARY, WIDTH), 8)
    VisualTable(embedding, page_rows=4, largest_id=VOCABULARY + 7)
    with pytest.raises(InvalidRequestError, match="8 rows behind id 50"):
        VisualTable(embedding, page_rows=4, largest_id=VOCABULARY + 6)


def test_a_released_embedding_keeps_no_rows() -> None:
    _, embedding = make_table()
    embedding.release()
    assert embedding.get_buffer("table").numel() == 0
