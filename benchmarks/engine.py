"""How fast are answers, with the engine, one by one through ``generate``, and in static batches through ``generate``?

    python benchmarks/engine.py --json engine.json            # all of it: about an hour on two cores
    python benchmarks/engine.py --quick --json engine.json    # the mini model, few sizes: minutes

Each question is about a video of its own, of random visual tokens, so nothing is reused; then one model is asked twice
about one video. All arms generate the same number of tokens and begin with the same embeddings. They are run in turn,
so that a slow spell of the machine hits all of them; what is compared are medians.
"""

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from fastervlm_video.config import SamplingParams
from fastervlm_video.language import EngineLimits, Event, Finished, GenerationRequest, PagedEngine, Prompt, TextDelta
from fastervlm_video.language import generate as ask
from fastervlm_video.language.embedding import embed_prompt
from fastervlm_video.models import LanguageHalf
from fastervlm_video.plan import ModelFacts

BEFORE, AFTER = (1, 7, 9), 12  # ids in front of the video, and how many behind it
CONTEXT_LENGTH = 4096
MODELS = ("mini", "135m")
ARMS = ("engine", "one by one", "static batch")


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    model: str
    visual_tokens: int
    concurrency: int
    new_tokens: int
    repeats: int


@dataclass(frozen=True)
class Times:
    """Of one round: seconds until all answers were complete, and until each had its first token."""

    total_seconds: float
    first_seconds: tuple[float, ...]


def main() -> int:
    """Run the cases, print a table, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the mini model, few sizes")
    parser.add_argument("--model", choices=MODELS, action="append", help="only this one (may be repeated)")
    parser.add_argument("--tokens", type=int, action="append", help="only this many visual tokens (may be repeated)")
    parser.add_argument("--concurrency", type=int, action="append", help="only this many at once (may be repeated)")
    parser.add_argument("--repeats", type=int, help="rounds of each case, instead of its own number")
    parser.add_argument("--threads", type=int, default=2, help="compute threads (default 2)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, object]] = []
    reuse: list[dict[str, object]] = []
    for model in options.model or (MODELS[:1] if options.quick else MODELS):
        half, tokenizer = load(model)
        print(f"\n{model}: {sum(p.numel() for p in half.language_model.parameters()) / 1e6:.1f} million parameters")
        print(
            f"{'visual':>7} {'at once':>8} {'new':>4}  " + "".join(f"{arm:>26}" for arm in ARMS) + "   engine against"
        )
        print(f"{'':>22}" + f"{'tokens/s   first token ms':>26}" * 3 + "   one by one   static")
        for case in chosen(model, options):
            rows.append(measure(half, tokenizer, case))
            print(line(case, rows[-1]), flush=True)
        for visual_tokens in options.tokens or ((208,) if options.quick else (208, 2048)):
            reuse.append(measure_reuse(half, tokenizer, model, visual_tokens, options.repeats or 5))
            print(sentence(reuse[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"cases": rows, "reuse": reuse}, indent=2) + "\n")
    return 0


def chosen(model: str, options: argparse.Namespace) -> list[Case]:
    """The cases of one model."""
    large = model != "mini"
    sizes = options.tokens or ((104,) if options.quick else (104, 208, 512, 2048))
    at_once = options.concurrency or ((1, 16) if options.quick else (1, 4, 16) if large else (1, 4, 16, 64))
    repeats = options.repeats or (3 if options.quick else 2 if large else 5)
    return [Case(model, size, number, 16 if large else 32, repeats) for size in sizes for number in at_once]


def load(model: str) -> tuple[LanguageHalf, PreTrainedTokenizerBase]:
    """A language half that never ends an answer by itself."""
    checkpoint = ModelFacts.open("mini").checkpoint
    half = checkpoint.load_language("cpu", "float32")
    if model == "135m":
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
        language_model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()
        half = LanguageHalf(language_model, nn.Linear(1024, 576).eval(), 1024, CONTEXT_LENGTH, "135m")
    half.language_model.config.eos_token_id = None
    half.language_model.generation_config.eos_token_id = None
    # Rotary embeddings have no table that a longer context would leave.
    return replace(half, context_length=CONTEXT_LENGTH), checkpoint.tokenizer


def make_requests(half: LanguageHalf, case: Case, *, seed: int) -> list[GenerationRequest]:
    """Questions about videos that nobody has asked about."""
    generator = torch.Generator().manual_seed(seed)
    return [
        GenerationRequest(
            request_id=f"{seed}-{number}",
            prompt=Prompt(BEFORE, case.visual_tokens, tuple(torch.randint(5, 150, (AFTER,)).tolist())),
            visual=torch.randn(case.visual_tokens, half.vision_width, generator=generator),
            sampling=SamplingParams(max_tokens=case.new_tokens),
            cache_identity=f"{seed}-{number}",
        )
        for number in range(case.concurrency)
    ]


class Collector:
    """Waits for one answer of the engine; an answer has no text until a token has some, but always times."""

    def __init__(self) -> None:
        self.end: Event | None = None
        self._done = threading.Event()

    def __call__(self, event: Event) -> None:
        """The engine's callback."""
        if not isinstance(event, TextDelta):
            self.end = event
            self._done.set()

    def finished(self) -> Finished:
        """How it ended, once it has."""
        self._done.wait()
        assert isinstance(self.end, Finished), self.end
        return self.end


def by_engine(engine: PagedEngine, requests: Sequence[GenerationRequest]) -> Times:
    """All at once."""
    begin = time.perf_counter()
    collectors = [Collector() for _ in requests]
    for request, collector in zip(requests, collectors, strict=True):
        engine.submit(request, collector)
    ends = [collector.finished() for collector in collectors]
    return Times(time.perf_counter() - begin, tuple(end.timings.ttft_seconds for end in ends))


class FirstToken(BaseStreamer):
    """Notes when ``generate`` had its first token."""

    def __init__(self) -> None:
        self.at = 0.0

    def put(self, value: Tensor) -> None:
        """The prompt comes first; being embedded, it has no ids."""
        if value.numel():
            self.at = self.at or time.perf_counter()

    def end(self) -> None:
        """Nothing to do."""


def _generate(half: LanguageHalf, embeds: Tensor, mask: Tensor, new_tokens: int, begin: float) -> float:
    """Seconds from ``begin`` to the first token."""
    model: Any = half.language_model
    first = FirstToken()
    one = len(embeds) == 1
    options: dict[str, Any] = {"streamer": first} if one else {"stopping_criteria": [_noting(first)]}
    model.generate(
        inputs_embeds=embeds, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens, pad_token_id=0, **options
    )
    return first.at - begin


def _noting(first: FirstToken) -> Callable[..., Tensor]:
    """Streamers take one answer only; stopping criteria are asked after every token of a batch."""

    def criterion(input_ids: Tensor, scores: object, **_: object) -> Tensor:  # noqa: ARG001 - likewise
        cast("Any", first).put(input_ids)
        return torch.zeros(len(input_ids), dtype=torch.bool)

    return criterion


@torch.inference_mode()
def one_by_one(half: LanguageHalf, requests: Sequence[GenerationRequest]) -> Times:
    """Each request by itself, in turn; the others wait."""
    begin, firsts = time.perf_counter(), []
    for request in requests:
        embeds = embed_prompt(half, request.prompt, request.visual)[None]
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        firsts.append(_generate(half, embeds, mask, request.sampling.max_tokens, begin))
    return Times(time.perf_counter() - begin, tuple(firsts))


@torch.inference_mode()
def static_batch(half: LanguageHalf, requests: Sequence[GenerationRequest]) -> Times:
    """All in one padded batch."""
    begin = time.perf_counter()
    embedded = [embed_prompt(half, request.prompt, request.visual) for request in requests]
    longest = max(map(len, embedded))
    embeds = torch.stack([nn.functional.pad(each, (0, 0, longest - len(each), 0)) for each in embedded])
    mask = torch.stack([(torch.arange(longest) >= longest - len(each)).long() for each in embedded])
    first = _generate(half, embeds, mask, requests[0].sampling.max_tokens, begin)
    return Times(time.perf_counter() - begin, (first,) * len(requests))


def measure(half: LanguageHalf, tokenizer: PreTrainedTokenizerBase, case: Case) -> dict[str, object]:
    """Medians of all arms; where there are several rounds, another one before them warms up."""
    length = len(BEFORE) + case.visual_tokens + AFTER + case.new_tokens
    limits = EngineLimits(case.concurrency, case.concurrency, kv_cache_tokens=case.concurrency * (length + 16))
    times: dict[str, list[Times]] = {arm: [] for arm in ARMS}
    with PagedEngine(half, tokenizer, limits) as engine:
        arms: list[Callable[[Sequence[GenerationRequest]], Times]] = [
            partial(by_engine, engine),
            partial(one_by_one, half),
            partial(static_batch, half),
        ]
        warm_ups = int(case.repeats > 1)
        for repeat in range(case.repeats + warm_ups):
            for name, arm in zip(ARMS, arms, strict=True):
                times[name].append(arm(make_requests(half, case, seed=repeat)))
    found: dict[str, Any] = {arm: _medians(rounds[warm_ups:], case) for arm, rounds in times.items()}
    speed = {arm: found[arm]["tokens_per_second"] for arm in ARMS}
    ratios = {f"engine / {arm}": speed["engine"] / speed[arm] for arm in ARMS[1:]}
    return {**asdict(case), **found, **ratios}


def _medians(rounds: Sequence[Times], case: Case) -> dict[str, float]:
    total = statistics.median(times.total_seconds for times in rounds)
    first = statistics.median(statistics.mean(times.first_seconds) for times in rounds)
    return {"tokens_per_second": case.concurrency * case.new_tokens / total, "first_token_ms": 1e3 * first}


def line(case: Case, row: dict[str, Any]) -> str:
    """A row of the table."""
    arms = "".join("{tokens_per_second:15.1f} {first_token_ms:10.0f}".format(**row[arm]) for arm in ARMS)
    ratios = "".join(f"{row[f'engine / {arm}']:10.2f}" for arm in ARMS[1:])
    return f"{case.visual_tokens:>7} {case.concurrency:>8} {case.new_tokens:>4}  {arms}   {ratios}"


def sentence(row: dict[str, Any]) -> str:
    """What reuse saved."""
    return (
        f"{row['model']}, {row['visual_tokens']} tokens asked about again: first token after {row['warm_ms']:.0f} ms "
        f"instead of {row['cold_ms']:.0f} ms, {row['ratio']:.1f} times as soon"
    )


def measure_reuse(
    half: LanguageHalf, tokenizer: PreTrainedTokenizerBase, model: str, visual_tokens: int, repeats: int
) -> dict[str, object]:
    """The time to the first token of the first and of another question about a video."""
    case = Case(model, visual_tokens, 1, 4, repeats)
    cold: list[float] = []
    warm: list[float] = []
    with PagedEngine(half, tokenizer, EngineLimits(1, kv_cache_tokens=4 * visual_tokens + 512)) as engine:
        for repeat in range(repeats + 1):
            (first,), (other,) = (make_requests(half, case, seed=repeat) for _ in range(2))
            for request, seconds in ((first, cold), (other, warm)):
                result = ask(engine, request)
                assert (result.usage.cached_tokens > 0) == (seconds is warm)
                seconds.append(result.timings.ttft_seconds)
    cold_ms, warm_ms = (1e3 * statistics.median(seconds[1:]) for seconds in (cold, warm))
    return {**asdict(case), "cold_ms": cold_ms, "warm_ms": warm_ms, "ratio": cold_ms / warm_ms}


if __name__ == "__main__":
    sys.exit(main())
