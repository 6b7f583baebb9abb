"""The Decoder, Encoder and Generator classes themselves: real model, real Redis, no cluster around them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastervlm_video.cache import CacheKey, Storage, decode_tokens, encode_tokens, read_header
from fastervlm_video.config import DEFAULT_METHOD, FrameSampling, Medium, PruneSpec, SamplingParams
from fastervlm_video.errors import (
    FasterVLMError,
    FingerprintMismatchError,
    InvalidRequestError,
    MediaError,
    TokenFormatError,
    UnavailableError,
    VideoNotFoundError,
)
from fastervlm_video.language import Message
from fastervlm_video.media import write_video
from fastervlm_video.mini import random_scene, render_scene, save_mini_checkpoint
from fastervlm_video.plan import ModelFacts
from fastervlm_video.prune import method_names
from fastervlm_video.vision import VisualTokens
from services.decoder import Decoder
from services.encoder import Encoder
from services.generator import Generator
from services.settings import Settings, load_settings
from services.stages import (
    AnswerDone,
    AnswerOrder,
    AnswerText,
    DecodedVideo,
    DecodeOrder,
    EncodedTokens,
    EncodeOrder,
    StageEvent,
    TokensMissing,
    TokensReady,
)
from services.stores import open_blob_store, open_service_cache
from tests.services.kit import lone_encoder

pytestmark = pytest.mark.usefixtures("logs_as_they_were")

SAMPLING = FrameSampling(4)
ASKED = (Message("user", "What is it?"),)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("s")
    # With random weights an answer goes on until it is stopped.
    model = save_mini_checkpoint(folder / "model")
    return load_settings(runtime_dir=folder / "run", max_batch_frames=8, model=str(model))


@pytest.fixture(scope="module")
def facts(settings: Settings) -> ModelFacts:
    return ModelFacts.open(settings.model)


@pytest.fixture(scope="module")
def decoder(settings: Settings) -> Iterator[Decoder]:
    stage = Decoder(settings)
    yield stage
    stage._sandbox.close()


@pytest.fixture(scope="module")
def encoder(settings: Settings) -> Iterator[Encoder]:
    with lone_encoder(settings) as stage:
        yield stage


@pytest.fixture
def generator(settings: Settings) -> Iterator[Generator]:
    stage = Generator(settings)
    yield stage
    stage._engine.close()
    stage._cache.close()


@pytest.fixture(scope="module")
def digest(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("v") / "v.mp4"
    write_video(path, render_scene(random_scene(5), num_frames=24, height=96, width=128), fps=12)
    return open_blob_store(settings).put(BytesIO(path.read_bytes()), filename="v.mp4").digest


def _orders(
    facts: ModelFacts, digest: str, keep_tokens: int, method: str = DEFAULT_METHOD
) -> tuple[EncodeOrder, AnswerOrder]:
    prune = PruneSpec(method=method, keep_tokens=keep_tokens)
    plan = facts.plan(digest, SAMPLING, prune)
    encode = EncodeOrder(digest, plan.key, prune, facts.fingerprint())
    answer = AnswerOrder("r", ASKED, plan.key, keep_tokens, facts.fingerprint(), SamplingParams(max_tokens=5))
    return encode, answer


async def _decode(decoder: Decoder, facts: ModelFacts, digest: str) -> DecodedVideo:
    return await decoder.decode(DecodeOrder(digest, SAMPLING, facts.preprocessing().resize))


async def _events(stream: AsyncIterator[StageEvent]) -> list[StageEvent]:
    return [event async for event in stream]


async def test_from_bytes_to_words(
    decoder: Decoder, encoder: Encoder, generator: Generator, facts: ModelFacts, digest: str
) -> None:
    encode, answer = _orders(facts, digest, 5)
    assert await _events(generator.generate(answer)) == [TokensMissing()]
    decoded = await _decode(decoder, facts, digest)
    assert decoded.frames.frames_thwc_u8.shape == (4, 112, 112, 3)
    encoded = await encoder.encode(decoded, encode)
    assert encoded.seconds.keys() == {"decode", "encode"}
    handed, cached = [await _events(generator.generate(answer, source)) for source in (encoded, None)]
    for events in (handed, cached):
        assert isinstance(events[0], TokensReady)
        assert (events[0].tokens_kept, events[0].tokens_full) == (4 * 5, 4 * 64)
        assert isinstance(events[-1], AnswerDone)
    text = ["".join(e.text for e in events if isinstance(e, AnswerText)) for events in (handed, cached)]
    assert text[0] == text[1] != ""
    smaller = await _events(generator.generate(replace(answer, tokens_per_frame=2)))
    assert isinstance(smaller[0], TokensReady)
    assert smaller[0].tokens_kept == 4 * 2
    assert await _events(generator.generate(replace(answer, tokens_per_frame=6))) == [TokensMissing()]


@pytest.mark.parametrize("method", sorted(set(method_names()) - {DEFAULT_METHOD}))
async def test_every_method_is_served_from_hand_and_from_the_cache(
    decoder: Decoder, encoder: Encoder, generator: Generator, facts: ModelFacts, digest: str, method: str
) -> None:
    encode, answer = _orders(facts, digest, 20, method)
    encoded = await encoder.encode(await _decode(decoder, facts, digest), encode)
    handed, cached = [await _events(generator.generate(answer, source)) for source in (encoded, None)]
    for events in (handed, cached):
        assert isinstance(events[0], TokensReady)
        assert (events[0].method, events[0].tokens_kept, sum(events[0].tokens_per_frame)) == (method, 4 * 20, 4 * 20)
        assert isinstance(events[-1], AnswerDone)
    assert [e for e in handed if isinstance(e, AnswerText)] == [e for e in cached if isinstance(e, AnswerText)]


async def test_int8_is_what_every_stage_sees(
    decoder: Decoder, encoder: Encoder, generator: Generator, settings: Settings, facts: ModelFacts, digest: str
) -> None:
    """Tokens from hand and from the cache alike; a replica with the other setting misses, without an error."""
    changed = settings.model_copy(update={"cache_dtype": "int8"})
    decoded, order = await _decode(decoder, facts, digest), _orders(facts, digest, 30)[0]
    plan = facts.plan(digest, SAMPLING, order.prune, dtype=Storage.INT8)
    cache = open_service_cache(changed)
    assert plan.key.variant != order.key.variant
    theirs, encoder._cache = encoder._cache, cache
    try:
        encoded = await encoder.encode(decoded, replace(order, key=plan.key))
    finally:
        encoder._cache = theirs
    assert read_header(encoded.blob).dtype is Storage.INT8
    assert torch.equal(
        _features(cache.lookup(plan.key, 30, facts.fingerprint())), _features(decode_tokens(encoded.blob))
    )
    answer = AnswerOrder("r", ASKED, plan.key, 30, facts.fingerprint(), SamplingParams(max_tokens=5))
    theirs, generator._cache = generator._cache, cache
    texts = [await _events(generator.generate(answer, source)) for source in (encoded, None)]
    generator._cache = theirs
    assert (
        [e for e in texts[0] if isinstance(e, AnswerText)] == [e for e in texts[1] if isinstance(e, AnswerText)] != []
    )
    assert await _events(generator.generate(replace(answer, key=order.key))) == [TokensMissing()]
    assert (cache.stats().errors, theirs.stats().errors) == (0, 0)
    cache.close()


def _features(tokens: VisualTokens | None) -> Tensor:
    assert tokens is not None
    return tokens.features


async def test_other_checkpoints_are_refused(
    decoder: Decoder, encoder: Encoder, generator: Generator, facts: ModelFacts, digest: str
) -> None:
    encode, answer = _orders(facts, digest, 3)
    decoded = await _decode(decoder, facts, digest)
    with pytest.raises(FingerprintMismatchError, match="upgrade"):
        await encoder.encode(decoded, replace(encode, fingerprint="0" * 64))
    with pytest.raises(FingerprintMismatchError, match="upgrade"):
        await _events(generator.generate(replace(answer, fingerprint="0" * 64)))
    blob = (await encoder.encode(decoded, encode)).blob
    damaged = EncodedTokens(blob[:-1] + bytes([blob[-1] ^ 1]), {})
    with pytest.raises(TokenFormatError):
        await _events(generator.generate(answer, damaged))


async def test_videos_are_encoded_together_and_one_bad_order_fails_alone(
    decoder: Decoder, encoder: Encoder, facts: ModelFacts, digest: str
) -> None:
    decoded = await _decode(decoder, facts, digest)
    passes: list[int] = []
    embeddings = encoder._encoders[Medium.VIDEO].tower.embeddings
    hook = embeddings.register_forward_hook(lambda _module, _inputs, output: passes.append(len(output)))
    try:
        orders = [_orders(facts, digest, keep)[0] for keep in (1, 4, 9, 64)]
        bad = replace(orders[0], prune=PruneSpec(keep_tokens=65))
        results = await asyncio.gather(*(encoder.encode(decoded, o) for o in (*orders, bad)), return_exceptions=True)
    finally:
        hook.remove()
    assert isinstance(results[-1], InvalidRequestError)
    counts = [decode_tokens(r.blob).counts[0] for r in results[:-1] if isinstance(r, EncodedTokens)]
    assert counts == [1, 4, 9, 64]
    assert (sum(passes), max(passes)) == (16, 8)


async def test_a_device_that_has_failed_for_good_is_reported_to_serve(
    decoder: Decoder, encoder: Encoder, facts: ModelFacts, digest: str
) -> None:
    decoded, (encode, _) = await _decode(decoder, facts, digest), _orders(facts, digest, 13)
    passes = 0

    def fail(*_args: object) -> None:
        nonlocal passes
        passes += 1
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    encoder.check_health()
    hook = encoder._encoders[Medium.VIDEO].tower.embeddings.register_forward_hook(fail)
    try:
        results = await asyncio.gather(*(encoder.encode(decoded, encode) for _ in range(2)), return_exceptions=True)
        assert [type(result) for result in results] == [UnavailableError, UnavailableError]
        assert passes == 1  # neither is tried alone
        with pytest.raises(UnavailableError, match="illegal memory access"):
            encoder.check_health()
    finally:
        hook.remove()
        encoder._broken = None


async def test_the_tower_runs_on_while_tokens_are_packed_and_stored(
    decoder: Decoder, encoder: Encoder, facts: ModelFacts, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first video's tokens wait, after packing, for the tower to begin with the second video."""
    decoded = await _decode(decoder, facts, digest)
    orders = [_orders(facts, digest, keep)[0] for keep in (10, 11)]
    stored, tower_again = asyncio.Event(), threading.Event()
    threads: dict[str, set[str]] = {"tower": set(), "packing": set()}
    loop, insert = asyncio.get_running_loop(), encoder._cache.insert

    def note_pass(*_args: object) -> None:
        threads["tower"].add(threading.current_thread().name)
        if stored.is_set():
            tower_again.set()

    def note_packing(tokens: VisualTokens, *, dtype: Storage) -> bytes:
        threads["packing"].add(threading.current_thread().name)
        return encode_tokens(tokens, dtype=dtype)

    def insert_late(key: CacheKey, blob: bytes) -> None:
        loop.call_soon_threadsafe(stored.set)
        assert tower_again.wait(30), "the tower waits for the cache"
        insert(key, blob)

    monkeypatch.setattr("services.encoder.encode_tokens", note_packing)
    monkeypatch.setattr(encoder._cache, "insert", insert_late)
    hook = encoder._encoders[Medium.VIDEO].tower.embeddings.register_forward_hook(note_pass)
    try:
        first = asyncio.create_task(encoder.encode(decoded, orders[0]))
        await asyncio.wait_for(stored.wait(), 30)
        results = await asyncio.gather(first, encoder.encode(decoded, orders[1]))
    finally:
        hook.remove()
    assert [decode_tokens(result.blob).counts[0] for result in results] == [10, 11]
    assert all(name.startswith("tower") for name in threads["tower"])
    assert threads["packing"]
    assert not any(name.startswith("tower") for name in threads["packing"])


async def test_tokens_that_cannot_be_stored_are_the_askers_error(
    decoder: Decoder, encoder: Encoder, facts: ModelFacts, digest: str
) -> None:
    """Features beyond float16: the asker is told, and the next one is served."""
    decoded = await _decode(decoder, facts, digest)
    encode, _ = _orders(facts, digest, 12, "uniform_grid")
    tower = encoder._encoders[Medium.VIDEO].tower
    final = tower.get_submodule(f"encoder.layers.{tower.depth - 1}.mlp")
    hook = final.register_forward_hook(lambda _module, _inputs, output: output + 1e6)
    try:
        with pytest.raises(FasterVLMError, match="float16"):
            await encoder.encode(decoded, encode)
    finally:
        hook.remove()
    assert not encoder._cache.holds(encode.key, 12)
    assert (await encoder.encode(decoded, encode)).blob


async def test_tokens_of_a_video_deleted_meanwhile_are_not_kept(
    decoder: Decoder, encoder: Encoder, facts: ModelFacts, digest: str
) -> None:
    decoded, gone = await _decode(decoder, facts, digest), "f" * 64
    for known, kept in ((digest, True), (gone, False)):
        encode, _ = _orders(facts, known, 2)
        assert (await encoder.encode(decoded, encode)).blob
        assert encoder._cache.holds(encode.key, 2) is kept


async def test_a_video_that_is_gone_or_no_video(
    decoder: Decoder, facts: ModelFacts, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(VideoNotFoundError):
        await _decode(decoder, facts, "0" * 64)
    garbage = open_blob_store(settings).put(BytesIO(b"\0\0\0\x18ftypmp42" + bytes(500)), filename="x").digest
    with pytest.raises(MediaError):
        await _decode(decoder, facts, garbage)


async def test_an_answer_nobody_waits_for_is_given_up(
    decoder: Decoder, encoder: Encoder, generator: Generator, facts: ModelFacts, digest: str
) -> None:
    encode, answer = _orders(facts, digest, 4)
    encoded = await encoder.encode(await _decode(decoder, facts, digest), encode)
    long = replace(answer, sampling=SamplingParams(max_tokens=1500))
    async with aclosing(generator.generate(long, encoded)) as stream:
        assert isinstance(await anext(stream), TokensReady)
        await anext(stream)
        assert generator._engine.running == 1
    for _ in range(100):
        if generator._engine.running == 0:
            break
        await asyncio.sleep(0.02)
    assert generator._engine.running == 0


async def test_a_dead_engine_is_reported_to_serve(generator: Generator) -> None:
    generator.check_health()
    generator._engine.close()
    with pytest.raises(UnavailableError, match="died"):
        generator.check_health()
