"""The stages with every architecture, about pictures and videos: real models, real Redis, no cluster around them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import pytest

from fastervlm_video import VideoQA
from fastervlm_video.cache import decode_tokens
from fastervlm_video.config import FrameSampling, ImageLayout, Medium, ModelOptions, PruneSpec, SamplingParams
from fastervlm_video.errors import ContextLengthError, FingerprintMismatchError
from fastervlm_video.language import Message, Prompt
from fastervlm_video.media import write_video
from fastervlm_video.plan import ModelFacts
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
    EncodeOrder,
    StageEvent,
    TokensMissing,
    TokensReady,
)
from services.stores import open_blob_store
from services.views import max_views
from tests.checkpoints import random_frames, save_random_checkpoint, save_random_llava, save_random_llava_next
from tests.integration.external_redis import RedisProcess
from tests.services.kit import lone_encoder, picture_bytes

pytestmark = pytest.mark.usefixtures("logs_as_they_were")

QUESTION = "What is it?"
SAMPLING, PARAMS = FrameSampling(3), SamplingParams(max_tokens=5)
PATCHES, MOST_VIEWS = 16, 5

ARCHITECTURES: dict[str, Callable[[Path], Path]] = {
    "video_llava": save_random_checkpoint,
    "llava": save_random_llava,
    "llava_next": save_random_llava_next,
}


@dataclass
class Replicas:
    """One of each stage, of one checkpoint."""

    name: str
    settings: Settings
    facts: ModelFacts
    decoder: Decoder
    encoder: Encoder
    generator: Generator

    def store(self, content: bytes) -> tuple[str, Medium]:
        blob = open_blob_store(self.settings).put(BytesIO(content), filename="a")
        return blob.digest, Medium(blob.medium)

    async def decode(self, content: bytes) -> DecodedVideo:
        digest, medium = self.store(content)
        steps = self.facts.preprocessing(medium)
        order = DecodeOrder(digest, SAMPLING, steps.resize, medium=medium, tiling=steps.tiling)
        return await self.decoder.decode(order)

    def orders(self, content: bytes, prune: PruneSpec) -> tuple[EncodeOrder, AnswerOrder]:
        digest, medium = self.store(content)
        plan = self.facts.plan(digest, SAMPLING, prune, medium=medium)
        fingerprint, options = self.facts.fingerprint(medium), self.settings.model_options()
        encode = EncodeOrder(digest, plan.key, prune, fingerprint, medium=medium, options=options)
        asked = (Message("user", QUESTION),)
        answer = AnswerOrder(
            "r", asked, plan.key, plan.tokens_per_frame, fingerprint, PARAMS, medium=medium, options=options
        )
        return encode, answer


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """All of them share it, as services that differ may."""
    redis = RedisProcess()
    yield redis.url
    redis.close()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def replicas(
    request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicas]:
    folder = tmp_path_factory.mktemp("m")
    model = ARCHITECTURES[request.param](folder / "model")
    settings = load_settings(
        model=str(model),
        runtime_dir=folder / "run",
        redis_url=redis_url,
        default_num_frames=3,
        max_num_frames=3,
        max_batch_frames=12,
        encode_batch_wait_seconds=0.2,
    )
    decoder, generator = Decoder(settings), Generator(settings)
    try:
        with lone_encoder(settings) as encoder:
            yield Replicas(request.param, settings, ModelFacts.open(model), decoder, encoder, generator)
    finally:
        decoder._sandbox.close()
        generator._engine.close()
        generator._cache.close()


@pytest.fixture(scope="module")
def library(replicas: Replicas) -> Iterator[VideoQA]:
    with VideoQA.from_pretrained(replicas.settings.model, keep_tokens=5, num_frames=SAMPLING.num_frames) as qa:
        yield qa


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("v") / "v.mp4"
    write_video(path, random_frames(12, 48, 96), fps=6)
    return path.read_bytes()


async def _events(stream: AsyncIterator[StageEvent]) -> list[StageEvent]:
    return [event async for event in stream]


def _text(events: list[StageEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, AnswerText))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "video"])
async def test_from_bytes_to_the_librarys_words(replicas: Replicas, library: VideoQA, video: bytes, kind: str) -> None:
    content, medium = (video, Medium.VIDEO) if kind == "video" else (picture_bytes(kind), Medium.IMAGE)
    encode, answer = replicas.orders(content, PruneSpec(keep_tokens=5))
    assert (encode.medium, answer.medium) == (medium, medium)
    assert await _events(replicas.generator.generate(answer)) == [TokensMissing()]
    encoded = await replicas.encoder.encode(await replicas.decode(content), encode)
    handed, cached = [await _events(replicas.generator.generate(answer, source)) for source in (encoded, None)]
    known = library.encode(content)
    expected = library.ask(known, QUESTION, PARAMS)
    assert _text(handed) == _text(cached) == expected.text != ""
    sequence = replicas.facts.arrange(known.tokens)
    pictures = 1 if medium is Medium.IMAGE else SAMPLING.num_frames
    for events in (handed, cached):
        ready, done = events[0], events[-1]
        assert isinstance(ready, TokensReady)
        assert isinstance(done, AnswerDone)
        assert (ready.medium, len(ready.pts_seconds)) == (medium, pictures)
        assert ready.views_per_picture * pictures == len(ready.tokens_per_frame)
        assert ready.tokens_kept == len(sequence) == sum(ready.tokens_per_frame) + len(sequence.separators)
        assert done.prompt_tokens == expected.usage.prompt_tokens == len(_prompt(replicas, sequence.runs, medium))


def _prompt(replicas: Replicas, runs: tuple[int, ...], medium: Medium) -> Prompt:
    return replicas.facts.chat_prompt([Message("user", QUESTION)], runs, PARAMS, medium)


async def test_unpruned_nothing_is_missing_from_what_there_was(replicas: Replicas) -> None:
    content = picture_bytes(height=40, width=64, seed=3)
    encode, answer = replicas.orders(content, PruneSpec(keep_ratio=1.0))
    encoded = await replicas.encoder.encode(await replicas.decode(content), encode)
    ready, *_ = await _events(replicas.generator.generate(answer, encoded))
    assert isinstance(ready, TokensReady)
    assert ready.tokens_kept == ready.tokens_full
    assert (ready.tokens_kept > PATCHES) == (ready.views_per_picture > 1) == (replicas.name == "llava_next")


async def test_a_picture_and_a_video_in_one_batch_each_get_their_tower(replicas: Replicas, video: bytes) -> None:
    """Where one tower sees both, they may share its passes; every result is what it is alone."""
    contents = [video, picture_bytes(seed=1), picture_bytes(height=90, width=30, seed=2)]
    spec = PruneSpec(keep_tokens=4)
    orders = [replicas.orders(content, spec)[0] for content in contents]
    decoded = [await replicas.decode(content) for content in contents]
    alone = [await replicas.encoder.encode(*pair) for pair in zip(decoded, orders, strict=True)]
    passes: dict[Medium, list[int]] = {medium: [] for medium in Medium}
    hooks = [
        replicas.encoder._encoders[medium].tower.embeddings.register_forward_hook(
            lambda _module, _inputs, output, seen=passes[medium]: seen.append(len(output))
        )
        for medium in Medium
    ]
    try:
        jobs = zip(decoded, orders, strict=True)
        together = await asyncio.gather(*(replicas.encoder.encode(*pair) for pair in jobs))
    finally:
        for hook in hooks:
            hook.remove()
    for one, other in zip(alone, together, strict=True):
        first, second = decode_tokens(one.blob), decode_tokens(other.blob)
        assert (first.fingerprint, first.medium, first.counts) == (second.fingerprint, second.medium, second.counts)
        assert first.indices.tolist() == second.indices.tolist()
    views = [one.frames.num_frames for one in decoded]
    shared = replicas.encoder._encoders[Medium.IMAGE] is replicas.encoder._encoders[Medium.VIDEO]
    assert shared == (replicas.name != "video_llava")
    expected = [sum(views)] * 2 if shared else [sum(views[1:]), views[0]]
    assert [sum(passes[medium]) for medium in (Medium.IMAGE, Medium.VIDEO)] == expected
    assert max(passes[Medium.IMAGE]) > 1  # not picture by picture


async def test_the_largest_video_fits_into_a_batch(replicas: Replicas, tmp_path: Path) -> None:
    """All views of as many frames as may be asked for."""
    assert max_views(replicas.facts) == (MOST_VIEWS if replicas.name == "llava_next" else 1)
    write_video(tmp_path / "v.mp4", random_frames(12, 64, 64, seed=5), fps=6)  # in four tiles each
    content = (tmp_path / "v.mp4").read_bytes()
    decoded = await replicas.decode(content)
    assert decoded.frames.num_frames == replicas.settings.max_num_frames * max_views(replicas.facts)
    encoded = await replicas.encoder.encode(decoded, replicas.orders(content, PruneSpec(keep_tokens=1))[0])
    assert decode_tokens(encoded.blob).num_pictures == replicas.settings.max_num_frames


async def test_an_answer_that_does_not_fit_is_refused_before_its_first_event(replicas: Replicas) -> None:
    """By the exact count, also where only the least was known before."""
    content = picture_bytes(height=64, width=64, seed=7)
    encode, answer = replicas.orders(content, PruneSpec(keep_ratio=1.0))
    encoded = await replicas.encoder.encode(await replicas.decode(content), encode)
    (ready, *_, done) = await _events(replicas.generator.generate(answer, encoded))
    assert isinstance(ready, TokensReady)
    assert isinstance(done, AnswerDone)
    room = replicas.facts.context_length - done.prompt_tokens
    for source in (encoded, None):
        fits = replace(answer, sampling=SamplingParams(max_tokens=room))
        stream = replicas.generator.generate(fits, source)
        assert await anext(stream) == replace(ready, seconds=source.seconds if source else {})
        await stream.aclose()
        too_long = replace(answer, sampling=SamplingParams(max_tokens=room + 1))
        with pytest.raises(ContextLengthError, match=f"{ready.tokens_kept} visual tokens"):
            await anext(replicas.generator.generate(too_long, source))
    runs = replicas.facts.visual_runs(SAMPLING, encode.prune, Medium.IMAGE)
    params = SamplingParams(max_tokens=room + 1)
    if replicas.name == "llava_next":  # what the Api checks lets it through
        replicas.facts.chat_prompt(answer.messages, runs, params, Medium.IMAGE)
    else:
        with pytest.raises(ContextLengthError):
            replicas.facts.chat_prompt(answer.messages, runs, params, Medium.IMAGE)


async def test_another_tower_or_another_choice_is_refused(replicas: Replicas) -> None:
    content = picture_bytes(seed=4)
    encode, answer = replicas.orders(content, PruneSpec(keep_tokens=2))
    decoded = await replicas.decode(content)
    for change in (
        {"fingerprint": "0" * 64},
        {"options": ModelOptions(ImageLayout.REFERENCE)},
        {"options": ModelOptions(frame_label="Frame {n}: ")},
    ):
        with pytest.raises(FingerprintMismatchError, match="upgrade"):
            await replicas.encoder.encode(decoded, replace(encode, **change))
        with pytest.raises(FingerprintMismatchError, match="upgrade"):
            await _events(replicas.generator.generate(replace(answer, **change)))
    if replicas.name == "video_llava":  # the tower of the other medium is another tower
        with pytest.raises(FingerprintMismatchError, match="upgrade"):
            await replicas.encoder.encode(decoded, replace(encode, medium=Medium.VIDEO))
