"""Each architecture at the dimensions of its published 7B checkpoint, loaded by halves, each half in its own process.

CLIP ViT-L/14 (24 layers, 1024 wide) for views of 336 px, or 224 px for Video-LLaVA, and a Llama of a 7B's width cut to
two layers, since its depth adds time and memory but nothing new; random weights, stored as bfloat16 in shards as
save_pretrained writes them, with a word-level tokenizer that is padded to the vocabulary. For each architecture:

    encoder    a fresh process loads the tower (or towers), turns a picture and a video of 8 frames into kept tokens
    generator  a fresh process loads projector and language model, and answers from these tokens

and memory is what each process's resident set has grown by since its imports: after loading, and at its peak. The
script fails if a process has grown by more than its own half and a share of the other. Weights are float32 in memory.

    python benchmarks/real_dimensions.py                    # 3 GB of disk and of memory at a time; many minutes
    python benchmarks/real_dimensions.py llava --quick      # one of them, with a tower of four layers
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, CLIPImageProcessor, CLIPVisionConfig, LlamaConfig

from fastervlm_video.cache import decode_tokens, encode_tokens
from fastervlm_video.config import FrameSampling, MediaLimits, Medium, PruneSpec, SamplingParams
from fastervlm_video.errors import ContextLengthError
from fastervlm_video.language import EngineLimits, GenerationRequest, PagedEngine, generate
from fastervlm_video.media import decode_picture, decode_video, write_video
from fastervlm_video.mini.vocabulary import IMAGE, VIDEO, build_tokenizer
from fastervlm_video.models import adapters
from fastervlm_video.plan import ModelFacts

VISION: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "patch_size": 14}
VISION_LAYERS, QUICK_LAYERS = 24, 4
TEXT: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}
TEXT_LAYERS, VOCABULARY = 2, 32064
KEEPS = (1.0, 0.1)
PICTURE, VIDEO_SIZE, FRAMES = (504, 672), (320, 640), 8  # (height, width)
PATIENT = MediaLimits(timeout_seconds=600)  # other work on the machine must not end the run
QUESTION, ANSWER_TOKENS = "What color is the square?", 8
FLOAT32_BYTES, GB = 4, 1e9
OTHER_SHARE = 0.25  # of the other half's weights: more than buffers take, less than loading it would
SHARD = "500MB"


def main() -> None:
    """Make, measure and remove each checkpoint in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL_TYPE", help=f"of {', '.join(adapters())}; all by default")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_LAYERS} layers in the towers: does it run?")
    parser.add_argument("--threads", type=int, default=2, help="compute threads (default 2)")
    parser.add_argument("--scratch", type=Path, help="where checkpoints are made; by default the temporary folder")
    parser.add_argument("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.part:
        print(json.dumps(PARTS[options.part](options)))
        return
    results = {name: measure(name, options) for name in options.models or adapters()}
    print_loading(results)
    print_work(results)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All parts of an architecture, each in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix="real-dimensions-", dir=options.scratch))
    try:
        results = {}
        for part in PARTS:
            print(f"{name}: {part} ...", file=sys.stderr, flush=True)
            results[part] = run_part(part, name, folder, options)
    finally:
        shutil.rmtree(folder)
    check_halves(results)
    return results


def run_part(part: str, name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What a part reports, after running in a fresh process."""
    command = [sys.executable, __file__, name, "--part", part, "--folder", str(folder)]
    command += ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def make(options: argparse.Namespace) -> dict[str, Any]:
    """Save a random checkpoint, a picture and a video."""
    (name,), folder = options.models, options.folder
    adapter, tokenizer = adapters()[name], build_tokenizer()
    begin, side = time.perf_counter(), adapter.config_class().vision_config.image_size
    layers = QUICK_LAYERS if options.quick else VISION_LAYERS
    identifiers = tokenizer.get_vocab()
    text = LlamaConfig(
        **TEXT,
        vocab_size=VOCABULARY,
        num_hidden_layers=TEXT_LAYERS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    build: Any = adapter.config_class  # whose arguments are the subclass's
    config = build(
        vision_config=CLIPVisionConfig(**VISION, num_hidden_layers=layers, image_size=side),
        text_config=text,
        image_token_index=identifiers[IMAGE],
        **({} if adapter.pictures_only else {"video_token_index": identifiers[VIDEO]}),
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=SHARD)
    save_tokenizer(folder)
    square = {"height": side, "width": side}
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size=square).save_pretrained(folder)
    noise = np.random.default_rng(0)
    Image.fromarray(noise.integers(0, 256, (*PICTURE, 3), np.uint8)).save(folder / "picture.png")
    write_video(folder / "video.mp4", noise.integers(0, 256, (FRAMES, *VIDEO_SIZE, 3), np.uint8), fps=1)
    files = [file for file in folder.iterdir() if file.suffix == ".safetensors"]
    return {
        "seconds": time.perf_counter() - begin,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
    }


def save_tokenizer(folder: Path) -> None:
    """The mini model's words, and others that nobody says, as many as the language model has embeddings for."""
    build_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"unsaid-{index}": index for index in range(len(vocabulary), VOCABULARY)}
    path.write_text(json.dumps(content))


def encode(options: argparse.Namespace) -> dict[str, Any]:
    """Load the towers; encode and prune."""
    folder, before = options.folder, memory()
    begin = time.perf_counter()
    facts = ModelFacts.open(folder)
    names = {facts.checkpoint.adapter.tower(medium): medium for medium in Medium}
    encoders = {name: facts.checkpoint.load_vision("cpu", "float32", medium=medium) for name, medium in names.items()}
    loaded = {"load_seconds": time.perf_counter() - begin, "resident": memory()["VmRSS"] - before["VmRSS"]}
    work = []
    for medium in Medium:
        begin = time.perf_counter()
        preprocessing = facts.preprocessing(medium)
        resize, tiling = preprocessing.resize, preprocessing.tiling
        if medium is Medium.IMAGE:
            frames = decode_picture(folder / "picture.png", limits=PATIENT, resize=resize, tiling=tiling)
        else:
            frames = decode_video(
                folder / "video.mp4", FrameSampling(FRAMES), limits=PATIENT, resize=resize, tiling=tiling
            )
        decoded = time.perf_counter() - begin
        for keep in KEEPS:
            begin = time.perf_counter()
            job = facts.encode_job(frames, PruneSpec(keep_ratio=keep), medium)
            (tokens,) = encoders[facts.checkpoint.adapter.tower(medium)].encode([job])
            seconds = time.perf_counter() - begin
            stored_as(folder, medium, keep).write_bytes(encode_tokens(tokens))
            work.append({"views": frames.num_frames, "decode": decoded, "encode": seconds})
    held = sum(held_bytes(encoder.tower) for encoder in encoders.values())
    return {**loaded, "peak": memory()["VmHWM"] - before["VmRSS"], "held": held, "work": work}


def answer(options: argparse.Namespace) -> dict[str, Any]:
    """Load projector and language model; answer from what the encoder has kept."""
    folder, before = options.folder, memory()
    begin = time.perf_counter()
    facts = ModelFacts.open(folder)
    half = facts.checkpoint.load_language("cpu", "float32")
    loaded = {"load_seconds": time.perf_counter() - begin, "resident": memory()["VmRSS"] - before["VmRSS"]}
    limits = EngineLimits(max_batch_size=1, kv_cache_tokens=facts.context_length)
    params, work = SamplingParams(max_tokens=ANSWER_TOKENS), []
    with PagedEngine(half, facts.checkpoint.tokenizer, limits) as engine:
        for medium in Medium:
            for keep in KEEPS:
                tokens = decode_tokens(stored_as(folder, medium, keep).read_bytes())
                sequence = facts.arrange(tokens)
                entry: dict[str, Any] = {"tokens": len(sequence), "first": None, "all": None}
                work.append(entry)
                try:
                    prompt = facts.prompt(QUESTION, sequence.runs, params, medium)
                except ContextLengthError as error:
                    print(f"{medium}, keep {keep:g}: {error}", file=sys.stderr)
                    continue
                request = GenerationRequest(
                    request_id=f"{medium}-{keep}",
                    prompt=prompt,
                    visual=sequence.features,
                    separators=sequence.separators,
                    sampling=params,
                )
                timings = generate(engine, request).timings
                entry |= {"first": timings.ttft_seconds, "all": timings.total_seconds}
    held = held_bytes(half.language_model) + held_bytes(half.projector)
    return {**loaded, "peak": memory()["VmHWM"] - before["VmRSS"], "held": held, "work": work}


PARTS = {"checkpoint": make, "encoder": encode, "generator": answer}


def stored_as(folder: Path, medium: Medium, keep: float) -> Path:
    """Where the encoder leaves a token set for the generator."""
    return folder / f"{medium}-{keep}.tokens"


def held_bytes(module: torch.nn.Module) -> int:
    """Of its weights, shared ones counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def memory() -> dict[str, int]:
    """Bytes resident in this process now (``VmRSS``) and at most (``VmHWM``)."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[0] in {"VmRSS:", "VmHWM:"}}


def check_halves(results: dict[str, Any]) -> None:
    """Each process must have grown by its own weights, and not by the other's.

    Raises:
        RuntimeError: it has.
    """
    for part, other in (("encoder", "generator"), ("generator", "encoder")):
        own, rest, resident = results[part]["held"], results[other]["held"], results[part]["resident"]
        if not 0.9 * own <= resident <= own + OTHER_SHARE * rest:
            raise RuntimeError(
                f"the {part} grew by {resident / GB:.2f} GB for weights of {own / GB:.2f} GB, "
                f"where the {other}'s weights are {rest / GB:.2f} GB"
            )


def print_loading(results: dict[str, dict[str, Any]]) -> None:
    """A row for each process."""
    print("| architecture | process | weights held, GB | grown by, GB | at its peak, GB | seconds to load |")
    print("|---|---|---|---|---|---|")
    for name, parts in results.items():
        whole = parts["checkpoint"]["parameters"] * FLOAT32_BYTES / GB
        for part in ("encoder", "generator"):
            row = parts[part]
            print(
                f"| {adapters()[name].title} | {part} | {row['held'] / GB:.2f} of {whole:.2f} "
                f"| {row['resident'] / GB:.2f} | {row['peak'] / GB:.2f} | {row['load_seconds']:.1f} |"
            )
    print()


def print_work(results: dict[str, dict[str, Any]]) -> None:
    """A row for each question."""
    head = "architecture | asked about | keep | views | visual tokens | decode, s | encode, s | first token, s | all, s"
    print(f"| {head} |")
    print("|---|---|---|---|---|---|---|---|---|")
    shown = {
        Medium.IMAGE: f"picture of {PICTURE[1]} x {PICTURE[0]}",
        Medium.VIDEO: f"{FRAMES} frames of {VIDEO_SIZE[1]} x {VIDEO_SIZE[0]}",
    }
    questions = [(medium, keep) for medium in Medium for keep in KEEPS]
    for name, parts in results.items():
        rows = zip(questions, parts["encoder"]["work"], parts["generator"]["work"], strict=True)
        for (medium, keep), encoded, answered in rows:
            fits = answered["first"] is not None
            times = f"{answered['first']:.1f} | {answered['all']:.1f}" if fits else "longer than the context |"
            print(
                f"| {adapters()[name].title} | {shown[medium]} | {keep:g} | {encoded['views']} | {answered['tokens']} "
                f"| {encoded['decode']:.2f} | {encoded['encode']:.1f} | {times} |"
            )


if __name__ == "__main__":
    main()
