"""The demo: start the service, make a video, ask about it over HTTP, draw what was kept, stop.

Everything is real: an H.264 file, an upload, Ray Serve stages, Redis, and the model that ``FASTERVLM_MODEL``
names. Each question is asked twice, with all visual tokens and with a tenth of them, and both answers are held against
what was drawn; then a story is told, streamed. From the second question on, the video's tokens come from the cache,
and its keys and values from the language stage's memory. Run it with ``make demo``.
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
_STORY = "describe"
_ANSWER_TOKENS = 12
_CHAT_KEEP_RATIO = 0.25
_CHAT_TOKENS = 40
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
            _ask_over_http(console, settings, video, scene)
        picture = _draw(settings, video)
        console.print(f"[bold]6.[/bold] Drew the frames with the kept patches lit: [bold]{picture}[/bold]")
    except FasterVLMError as exc:
        console.print(f"[red]error:[/red] {exc.message}", markup=True)
        return 1
    console.print(f"Done in {time.perf_counter() - begin:.0f} s; everything is stopped.")
    return 0


def _questions(scene: Scenes) -> tuple[list[Question], Question]:
    """One question of each kind, and one for a story, with the answers that follow from how the video was made."""
    times, rng = frame_times(DEFAULT_NUM_FRAMES), np.random.default_rng(_SCENE_SEED)
    asked = ask_about(scene, 0, times, rng)
    story = next(one for one in ask_about(scene, 0, times, rng, training=True) if one.kind == _STORY)
    return [next(one for one in asked if one.kind == kind) for kind in _KINDS], story


def _ask_over_http(console: Console, settings: Settings, video: Path, scene: Scenes) -> None:
    from services.run import running_service

    questions, story = _questions(scene)
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
            full = _ask(client, upload["id"], question.text, 1.0)
            pruned = _ask(client, upload["id"], question.text, _KEEP_RATIO)
            _show_answers(console, question, full, pruned)
        console.print(f"[bold]5.[/bold] Chatted about it, streamed, with {_CHAT_KEEP_RATIO:.0%} of the tokens, twice:")
        for _ in range(2):
            _chat(console, client, model["id"], upload["id"], story)


def _ask(client: httpx.Client, file_id: str, question: str, keep_ratio: float) -> dict[str, Any]:
    body = {"file_id": file_id, "question": question, "max_tokens": _ANSWER_TOKENS, "keep_ratio": keep_ratio}
    answer: dict[str, Any] = _checked(client.post("/v1/ask", json=body)).json()
    return answer


def _chat(console: Console, client: httpx.Client, model: str, file_id: str, question: Question) -> None:
    """Ask in OpenAI's words, and show the pieces of the answer as they come."""
    content = [{"type": "video_url", "video_url": {"url": file_id}}, {"type": "text", "text": question.text}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": _CHAT_TOKENS,
        "temperature": 0,
        "keep_ratio": _CHAT_KEEP_RATIO,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    console.print(f"   [bold]Q[/bold]  {question.text}\n      ", end="")
    said, usage = "", dict[str, Any]()
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        for chunk in _chunks(_checked(response)):
            piece = chunk["choices"][0]["delta"].get("content", "") if chunk["choices"] else ""
            console.print(f"[bold]{piece}[/bold]", end="", soft_wrap=True)
            said += piece
            usage = chunk.get("usage") or usage
    reused = usage["prompt_tokens_details"]["cached_tokens"]
    console.print(
        f" ({_verdict(question, said)})\n      [dim]{reused} of {usage['prompt_tokens']} prompt tokens reused[/dim]"
    )


def _verdict(question: Question, said: str) -> str:
    return "[green]right[/green]" if said.strip() == question.answer else f"[red]wrong[/red]: {question.answer}"


def _chunks(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        data = line.removeprefix("data: ")
        if data and data != "[DONE]":
            chunk = json.loads(data)
            if "error" in chunk:
                raise FasterVLMError(chunk["error"]["message"])
            yield chunk


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        response.read()
        raise FasterVLMError(f"the service answered {response.status_code}: {response.text[:500]}")
    return response


def _show_answers(console: Console, question: Question, full: dict[str, Any], pruned: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 1, 0, 3))
    table.add_row("[bold]Q[/bold]", question.text)
    for answer in (full, pruned):
        video, said = answer["video"], answer["answer"].strip()
        seconds = ", ".join(f"{name} {value:.3f}" for name, value in video["seconds"].items())
        reused, prompt = answer["usage"]["prompt_tokens_details"]["cached_tokens"], answer["usage"]["prompt_tokens"]
        table.add_row(f"{video['tokens_kept']} tokens", f"[bold]{said}[/bold] ({_verdict(question, said)})")
        reuse = f"{reused} of {prompt} prompt tokens reused"
        table.add_row("", f"[dim]cache {video['cache']}; {reuse}; {seconds}[/dim]")
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
