"""How soon is the first token of a video nobody has asked about, with all visual tokens and with few?

At Video-LLaVA's geometry: 8 frames of 224 px through a CLIP ViT-L/14 tower to its last but one layer, pruning, a
projector and a Llama of 1.1 billion parameters in the engine that serves; random weights, float32. Each round asks
about one video with every number of tokens in turn. Beside the measured speed-up stands the one that floating-point
operations predict:

    python benchmarks/first_token.py --json first_token.json --plot first_token.png     # 7 GB of memory, minutes
    python benchmarks/first_token.py --quick                                            # 135 million parameters

Processor time of all threads is what is compared, for other work on the machine disturbs it least; threads that wait
must then not spin, which OMP_WAIT_POLICY=passive in the environment sees to.

Operations are counted by formula (a multiplication and an addition are two); for the encoder the formula must agree
with PyTorch's own counter, which sees what is really run.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from random_vision import noise_video, random_clip
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from fastervlm_video.config import PruneSpec, SamplingParams
from fastervlm_video.language import EngineLimits, GenerationRequest, PagedEngine, Prompt, generate
from fastervlm_video.models import LanguageHalf
from fastervlm_video.plan import ModelFacts
from fastervlm_video.vision import EncodeJob, Preprocessing, VisionEncoder, VisionTower

FRAMES, PATCH, PATCHES = 8, 14, 256
WIDTH, HEADS, LAYERS, USED_LAYERS = 1024, 16, 24, 23  # of the tower
KEPT = (256, 64, 26, 13)  # of each frame's 256: 2048, 512, 208, 104 visual tokens
BEFORE, AFTER = (1, 7, 9), 12  # ids in front of the video, and how many behind it
TEXT = len(BEFORE) + AFTER
FORMULA_TOLERANCE = 0.01
AIM = 0.9


@dataclass(frozen=True)
class Run:
    """Seconds of one question: the processor's, of all threads, and a clock's."""

    encode_processor: float
    language_processor: float
    encode_elapsed: float
    language_elapsed: float

    def total(self, clock: str) -> float:
        """Until the first token."""
        return float(getattr(self, f"encode_{clock}") + getattr(self, f"language_{clock}"))


def main() -> int:
    """Ask, print a table, and say whether the aim was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a language model of 135 million parameters")
    parser.add_argument("--repeats", type=int, default=2, help="rounds of all arms (default 2)")
    parser.add_argument("--threads", type=int, default=2, help="compute threads (default 2)")
    parser.add_argument("--batch-tokens", type=int, default=EngineLimits().max_batch_tokens, help="of one forward pass")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="also draw them here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    encoder, (half, tokenizer) = load_encoder(), load_language(quick=options.quick)
    parameters = sum(parameter.numel() for parameter in half.language_model.parameters())
    print(f"{parameters / 1e6:.0f} million parameters, {options.threads} threads, {options.repeats} rounds, medians")
    context = EngineLimits(1, kv_cache_tokens=TEXT + FRAMES * PATCHES + 1, max_batch_tokens=options.batch_tokens)
    with PagedEngine(half, tokenizer, context) as engine:
        runs = measure(encoder, engine, options.repeats)
    encode_flops = [count_encoding(encoder, kept) for kept in KEPT]
    language_flops = [language_operations(half, FRAMES * kept, options.batch_tokens) for kept in KEPT]
    rows = table(runs, encode_flops, language_flops)
    show(rows)
    if options.json:
        facts = {"parameters": parameters, "threads": options.threads, "repeats": options.repeats}
        options.json.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")
    if options.plot:
        draw(rows, options.plot)
    return 0 if min(row["of_prediction"] for row in rows) >= AIM else 1


def load_encoder() -> VisionEncoder:
    """CLIP ViT-L/14 with random weights, to the layer that Video-LLaVA uses."""
    model = random_clip(width=WIDTH, layers=LAYERS, heads=HEADS, patch=PATCH)
    return VisionEncoder(VisionTower(model, USED_LAYERS), Preprocessing.from_config({}), "random")


def load_language(*, quick: bool) -> tuple[LanguageHalf, PreTrainedTokenizerBase]:
    """A projector and a Llama of TinyLlama's dimensions (or SmolLM's), random, that never ends an answer by itself."""
    size = (576, 30, 9, 3, 1536) if quick else (2048, 22, 32, 4, 5632)
    hidden, layers, heads, key_heads, inner = size
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        eos_token_id=None,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    projector = nn.Sequential(nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, hidden)).eval()
    half = LanguageHalf(model, projector, WIDTH, 2 * FRAMES * PATCHES, "random")
    return half, ModelFacts.open("mini").checkpoint.tokenizer


def measure(encoder: VisionEncoder, engine: PagedEngine, repeats: int) -> list[list[Run]]:
    """For each number of kept tokens its rounds; the fewest tokens once more before, to warm up."""
    ask(encoder, engine, KEPT[-1], seed=0)
    runs: list[list[Run]] = [[] for _ in KEPT]
    for repeat in range(repeats):
        for kept, rounds in zip(KEPT, runs, strict=True):
            rounds.append(ask(encoder, engine, kept, seed=1 + repeat))
            seconds = rounds[-1].total("elapsed")
            print(f"  round {repeat + 1}: {FRAMES * kept} tokens, {seconds:.1f} s", file=sys.stderr, flush=True)
    return runs


def ask(encoder: VisionEncoder, engine: PagedEngine, kept: int, *, seed: int) -> Run:
    """One question about a new video, to its first and only token."""
    job = EncodeJob(noise_video(FRAMES, seed=seed), PruneSpec(keep_tokens=kept))
    begin = now()
    (tokens,) = encoder.encode([job])
    encoded = now()
    prompt = Prompt(BEFORE, tokens.tokens_kept, tuple(range(20, 20 + AFTER)))
    name = f"{seed}-{kept}"
    sampling = SamplingParams(max_tokens=1)
    result = generate(engine, GenerationRequest(name, prompt, tokens.sequence(), sampling, cache_identity=name))
    assert result.usage.cached_tokens == 0, result
    answered = now()
    return Run(encoded[0] - begin[0], answered[0] - encoded[0], encoded[1] - begin[1], answered[1] - encoded[1])


def now() -> tuple[float, float]:
    """Both clocks."""
    return time.process_time(), time.perf_counter()


def count_encoding(encoder: VisionEncoder, kept: int) -> int:
    """Operations of encoding, by formula; it must be the one for what the encoder does, says PyTorch's counter.

    Raises:
        RuntimeError: neither of the two ways to run the last layer explains what was counted.
    """
    # The counter knows no fused attention of a CPU, but the products that it is made of.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder.encode([EncodeJob(noise_video(1), PruneSpec(keep_tokens=kept))])
    counted = FRAMES * counter.get_total_flops()
    formulas = [encoding_operations(rows) for rows in (kept, 1 + PATCHES)]
    nearest = min(formulas, key=lambda formula: abs(formula - counted))
    if abs(nearest - counted) > FORMULA_TOLERANCE * counted:
        raise RuntimeError(f"encoding takes {counted} operations, but the formulas say {formulas}; correct them")
    return nearest


def encoding_operations(last_rows: int) -> int:
    """Of all frames, with ``last_rows`` rows of each frame going through the last layer's queries, output and MLP."""
    tokens, inner = 1 + PATCHES, 4 * WIDTH
    patches = 2 * PATCHES * 3 * PATCH**2 * WIDTH

    def layer(rows: int) -> int:
        keys_values = 2 * tokens * 2 * WIDTH**2
        others = 2 * rows * (2 * WIDTH**2 + 2 * WIDTH * inner)
        return keys_values + others + 2 * 2 * rows * tokens * WIDTH

    return FRAMES * (patches + (USED_LAYERS - 1) * layer(tokens) + layer(last_rows))


def language_operations(half: LanguageHalf, visual_tokens: int, batch_tokens: int) -> int:
    """Of projector, prompt and first token: linear layers, causal attention, and one row of logits in each pass."""
    config = half.language_model.config
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    key_width = hidden * config.num_key_value_heads // config.num_attention_heads
    prompt = TEXT + visual_tokens
    passes = -(-prompt // batch_tokens)
    linear = 2 * prompt * (2 * hidden**2 + 2 * hidden * key_width + 3 * hidden * inner)
    attention = 2 * 2 * hidden * prompt * (prompt + 1) // 2
    logits = 2 * passes * hidden * config.vocab_size
    projector = 2 * visual_tokens * (WIDTH * hidden + hidden**2)
    return int(projector + layers * (linear + attention) + logits)


def table(runs: Sequence[Sequence[Run]], encode_flops: list[int], language_flops: list[int]) -> list[dict[str, float]]:
    """A row for each number of tokens, against the first one; of the rounds, medians."""
    rows: list[dict[str, float]] = []
    for kept, rounds, *flops in zip(KEPT, runs, encode_flops, language_flops, strict=True):
        row: dict[str, float] = {"visual_tokens": FRAMES * kept, "tflop": sum(flops) / 1e12}
        row |= {"encode_tflop": flops[0] / 1e12, "language_tflop": flops[1] / 1e12}
        for field in fields(Run):
            row[field.name] = statistics.median(getattr(run, field.name) for run in rounds)
        for clock in ("processor", "elapsed"):
            row[clock] = statistics.median(run.total(clock) for run in rounds)
            row[f"speed_up_{clock}"] = (rows[0] if rows else row)[clock] / row[clock]
        row["predicted"] = (rows[0] if rows else row)["tflop"] / row["tflop"]
        row["of_prediction"] = row["speed_up_processor"] / row["predicted"]
        rows.append(row)
    return rows


def show(rows: Sequence[dict[str, float]]) -> None:
    """Print the table."""
    print("processor seconds of all threads; GFLOP per such second; in brackets by the clock on the wall")
    print(f"{'visual':>7} {'TFLOP':>14} {'encode':>14} {'language':>14} {'in all':>15}", end="")
    print(f" {'GFLOP/s':>10} {'speed-up':>15} {'predicted':>10} {'reached':>8}")
    for row in rows:
        parts = [(row[f"{part}_processor"], row[f"{part}_elapsed"]) for part in ("encode", "language")]
        rates = [1e3 * row[f"{part}_tflop"] / row[f"{part}_processor"] for part in ("encode", "language")]
        print(
            f"{row['visual_tokens']:7.0f} {row['encode_tflop']:6.3f} + {row['language_tflop']:5.3f}"
            + "".join(f" {processor:6.2f} ({elapsed:5.2f})" for processor, elapsed in parts)
            + f" {row['processor']:7.2f} ({row['elapsed']:5.2f}) {rates[0]:4.0f} + {rates[1]:3.0f}"
            f" {row['speed_up_processor']:7.2f} ({row['speed_up_elapsed']:5.2f}) {row['predicted']:10.2f}"
            f" {row['of_prediction']:8.1%}"
        )
    print(f"the aim: at least {AIM:.0%} of the speed-up that the operations predict")


def draw(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Seconds by part, and what the operations predict from the first row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['visual_tokens']:.0f}" for row in rows]
    encode = [row["encode_processor"] for row in rows]
    axes.bar(names, encode, 0.5, label="encode and prune")
    axes.bar(names, [row["language_processor"] for row in rows], 0.5, bottom=encode, label="prompt and first token")
    predicted = [rows[0]["processor"] / row["predicted"] for row in rows]
    left, right = ([place + side for place in range(len(rows))] for side in (-0.2, 0.2))
    axes.hlines(predicted, left, right, color="black", label="as operations predict")
    for place, (row, line) in enumerate(zip(rows, predicted, strict=True)):
        top = max(row["processor"], line)
        axes.text(place, top, f"{row['speed_up_processor']:.2f}x", ha="center", va="bottom", fontsize=8)
    axes.set(xlabel="visual tokens", ylabel="processor seconds to the first token", ylim=(0, 1.1 * max(predicted)))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
