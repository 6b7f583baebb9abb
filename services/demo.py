"""The demo: start the service, make a video, ask about it over HTTP, draw what was kept, stop.

Everything is real: an H.264 file, an upload, Ray Serve stages, Redis, and the model that ``FASTERVLM_MODEL``
names. Each question is asked twice, with all visual tokens and, streamed, with a tenth of them, and both answers are
held against what was drawn. From the second question on, the video's tokens come from the cache, and its keys and
values from the language stage's memory. Run it with ``make demo``.
"""

import json
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from fastervlm_video.config import DEFAULT_NUM_FRAMES
from fastervlm_video.errors import FasterVLMError
from fastervlm_video.media import write_video
from fastervlm_video.mini import Question, Scenes, ask_about, frame_times, random_scene, render_scene
from services.settings import Settings, load_settings

__all__ = ["main"]

_OUTPUT = Path("demo-output")
_SCENE_SEED = 8
_FPS = 12
_KEEP_RATIO = 0.1
_KINDS = ("color", "count", "motion", "order")
_ANSWER_TOKENS = 12
_HTTP_TIMEOUT_SECONDS = 120.0


def main() -> int:
    """Run the demo; returns the exit status."""
    console = Console(highlight=False)
    begin = time.perf_counter()
    try:
        _OUTPUT.mkdir(exist_ok=True)
        video = _OUTPUT / "shapes.mp4"
        scene = random_scene(_SCENE_SEED)
        frames = render_scene(scene)
        write_video(video, frames, fps=_FPS)
        console.print(
            f"[bold]1.[/bold] Made {video}: {len(frames) / _FPS:.0f} s of H.264, {video.stat().st_size} bytes."
        )
        with tempfile.TemporaryDirectory(prefix="fastervlm-demo-") as runtime_dir:
            settings = load_settings(runtime_dir=Path(runtime_dir), port=_free_port(), log_level="WARNING")
            _ask_over_http(console, settings, video, _questions(scene))
        picture = _draw(settings, video)
        console.print(f"[bold]5.[/bold] Drew the frames with the kept patches lit: [bold]{picture}[/bold]")
    except FasterVLMError as exc:
        console.print(f"[red]error:[/red] {exc.message}", markup=True)
        return 1
    console.print(f"Done in {time.perf_counter() - begin:.0f} s; everything is stopped.")
    return 0


def _questions(scene: Scenes) -> list[Question]:
    """One question of each kind, with the answer that follows from how the video was made."""
    asked = ask_about(scene, 0, frame_times(DEFAULT_NUM_FRAMES), np.random.default_rng(_SCENE_SEED))
    return [next(question for question in asked if question.kind == kind) for kind in _KINDS]


def _ask_over_http(console: Console, settings: Settings, video: Path, questions: list[Question]) -> None:
    from services.run import running_service

    with ExitStack() as stack:
        with console.status("Starting Ray Serve: Api, Decoder, Encoder, Generator, and Redis …"):
            begin = time.perf_counter()
            url = stack.enter_context(running_service(settings, show_logs=False))
        console.print(f"[bold]2.[/bold] The service is ready at {url} after {time.perf_counter() - begin:.0f} s.")
        client = stack.enter_context(httpx.Client(base_url=url, timeout=_HTTP_TIMEOUT_SECONDS))
        model = _checked(client.get("/v1/models")).json()["data"][0]
        upload = _checked(client.post("/v1/files", files={"file": (video.name, video.read_bytes())})).json()
        console.print(f"[bold]3.[/bold] Uploaded it: {upload['id'][:17]}… ({upload['bytes']} bytes)")
        console.print(
            f"[bold]4.[/bold] Asked {model['id']}, with all visual tokens and with {_KEEP_RATIO:.0%} of them:"
        )
        for question in questions:
            full = _ask(client, upload["id"], question.text, {"keep_ratio": 1.0})
            pruned = _ask(client, upload["id"], question.text, {"keep_ratio": _KEEP_RATIO, "stream": True})
            _show_answers(console, question, full, pruned)


def _ask(client: httpx.Client, file_id: str, question: str, options: dict[str, Any]) -> dict[str, Any]:
    body = {"file_id": file_id, "question": question, "max_tokens": _ANSWER_TOKENS, **options}
    if not options.get("stream"):
        answer: dict[str, Any] = _checked(client.post("/v1/ask", json=body)).json()
        return answer
    pieces = 0
    with client.stream("POST", "/v1/ask", json=body) as response:
        if response.is_error:
            response.read()
        for name, data in _events(_checked(response)):
            pieces += name == "delta"
            if name == "error":
                raise FasterVLMError(data["error"]["message"])
            if name == "done":
                return data | {"pieces": pieces}
    raise FasterVLMError("the stream ended before its end")


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        raise FasterVLMError(f"the service answered {response.status_code}: {response.text[:500]}")
    return response


def _events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def _show_answers(console: Console, question: Question, full: dict[str, Any], pruned: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 1, 0, 3))
    table.add_row("[bold]Q[/bold]", question.text)
    for answer in (full, pruned):
        video, said = answer["video"], answer["answer"].strip()
        verdict = "[green]right[/green]" if said == question.answer else f"[red]wrong[/red]: {question.answer}"
        seconds = ", ".join(f"{name} {value:.3f}" for name, value in video["seconds"].items())
        reused, prompt = answer["usage"]["prompt_tokens_details"]["cached_tokens"], answer["usage"]["prompt_tokens"]
        table.add_row(f"{video['tokens_kept']} tokens", f"[bold]{said}[/bold] ({verdict})")
        pieces = f"streamed in {answer['pieces']} pieces; " if "pieces" in answer else ""
        reuse = f"{reused} of {prompt} prompt tokens reused"
        table.add_row("", f"[dim]{pieces}cache {video['cache']}; {reuse}; {seconds}[/dim]")
    if full["answer"] != pruned["answer"]:
        table.add_row("", "[yellow]Pruning changed this answer.[/yellow]")
    console.print(table)
    console.print()


def _draw(settings: Settings, video: Path) -> Path:
    """The same tokens once more, in this process: frames do not leave the service."""
    from fastervlm_video.picture import draw_kept_patches
    from fastervlm_video.pipeline import VideoQA

    target = _OUTPUT / "kept_patches.png"
    keep = _KEEP_RATIO
    with VideoQA.from_pretrained(settings.model, revision=settings.revision, keep_ratio=keep) as qa:
        encoded = qa.encode_video(video)
        assert encoded.frames is not None
        draw_kept_patches(encoded.frames, encoded.tokens, title=f"{video.name}, {keep:.0%} kept").save(target)
    return target


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    sys.exit(main())
