"""The command ``size``: how many replicas a load needs, from what the stages take."""

import contextlib
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fastervlm_video.cli_tools import one_line_errors, print_json, steps_shown, wide_console
from fastervlm_video.config import DEFAULT_KEEP_RATIO, DEFAULT_NUM_FRAMES
from fastervlm_video.errors import FasterVLMError, InvalidRequestError, UnavailableError
from fastervlm_video.sizing import DEFAULT_TARGET, Calibration, Load, Sizing, StageSize, shipped_calibration, size

__all__ = ["size_command"]

_AUTO = "auto"
_START_SECONDS = 300.0
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.5


def size_command(  # noqa: PLR0917 - the command's options
    questions_per_second: Annotated[
        float, typer.Option("--questions-per-second", "-q", help="That arrive, in the busiest minutes.")
    ] = 1.0,
    hit_share: Annotated[
        float, typer.Option("--hit-share", help="Share of them about videos whose tokens are cached.")
    ] = 0.0,
    keep: Annotated[float, typer.Option("--keep", help="Share of the visual tokens kept.")] = DEFAULT_KEEP_RATIO,
    frames: Annotated[int, typer.Option("--frames", help="Frames of each video.")] = DEFAULT_NUM_FRAMES,
    text_tokens: Annotated[int, typer.Option("--text-tokens", help="Tokens of a prompt beside the visual ones.")] = 32,
    answer_tokens: Annotated[int, typer.Option("--answer-tokens", help="Tokens of an answer.")] = 64,
    reuse_share: Annotated[
        float, typer.Option("--reuse-share", help="Share of hits whose keys and values a generator still has, too.")
    ] = 0.0,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Answers that a generator makes side by side.")] = 8,
    target: Annotated[
        float, typer.Option("--target", help="Share of the time that replicas may be busy; the rest is for bursts.")
    ] = DEFAULT_TARGET,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration", help="File with what the stages take.  [dim]\\[default: the mini model on a CPU][/dim]"
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            help="Measure that first: the URL of a running service with nothing else to do, or [bold]auto[/bold] to "
            "start one, with the settings in the environment.",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            help="URL of a service's metrics page: decoding and encoding as its users' videos have taken. With several "
            "machines, once for each: what they have counted is added up.",
            show_default=False,
        ),
    ] = None,
    machine: Annotated[str, typer.Option("--machine", help="What is measured on, in words, for the file.")] = "",
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="FASTERVLM_API_KEY", help="Of the service.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write the measurement to.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Say how many decoders, encoders and generators a load needs.

    [bold]Examples[/bold]

    fastervlm-video size --questions-per-second 5 --hit-share 0.8 --keep 0.1

    fastervlm-video size --calibrate http://localhost:8000 --out ours.json -q 20 --hit-share 0.9
    """
    with one_line_errors():
        load = Load(
            questions_per_second, hit_share, keep, frames, text_tokens, answer_tokens, reuse_share, batch_size, target
        )
        if calibrate is not None and calibration is not None:
            raise InvalidRequestError("--calibration names a measurement and --calibrate makes one: give one of them")
        if calibrate is None:
            costs = shipped_calibration() if calibration is None else _read(calibration)
        else:
            costs = _measure(calibrate, machine or _this_machine(), batch_size, api_key)
        if metrics:
            costs = _with_metrics(costs, metrics)
        if out is not None:
            _write(out, costs)
        sizing = size(load, costs)
        if as_json:
            print_json({"load": asdict(load), "calibration": asdict(costs), "sizing": asdict(sizing)})
        else:
            _print(load, costs, sizing)


def _this_machine() -> str:
    return f"{platform.machine()}, {platform.system()}"


def _read(path: Path) -> Calibration:
    try:
        return Calibration.from_json(path.read_text())
    except OSError as exc:
        raise InvalidRequestError(f"cannot read {str(path)!r}: {exc.strerror}") from exc


def _write(path: Path, costs: Calibration) -> None:
    try:
        path.write_text(costs.to_json())
    except OSError as exc:
        raise InvalidRequestError(f"cannot write {str(path)!r}: {exc.strerror}") from exc


def _measure(url: str, machine: str, batch_size: int, api_key: str | None) -> Calibration:
    from fastervlm_video.calibrate import measure

    with contextlib.ExitStack() as stack:
        steps = stack.enter_context(steps_shown())
        if url == _AUTO:
            with steps.step("Starting a service"):
                url = stack.enter_context(_own_service())
        with steps.step("Asking it") as progress:
            return measure(url, machine=machine, batch_size=batch_size, api_key=api_key, progress=progress)


def _with_metrics(costs: Calibration, urls: Sequence[str]) -> Calibration:
    from fastervlm_video.calibrate import with_metrics

    return with_metrics(costs, *map(_page, dict.fromkeys(urls)))  # named twice, a page would count double


def _page(url: str) -> str:
    import httpx

    try:
        return httpx.get(url).raise_for_status().text
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise InvalidRequestError(f"no metrics at {url}: {type(exc).__name__}: {exc}") from exc


@contextlib.contextmanager
def _own_service() -> Iterator[str]:
    """A service in a process of its own, ready to answer; gives its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "from fastervlm_video.cli import main; main()"
    command = [sys.executable, "-P", "-c", code, "serve", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:  # noqa: S603 - ourselves
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str) -> None:
    import httpx

    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.stderr is not None
            raise UnavailableError(
                f"the service did not start: {process.stderr.read().decode(errors='replace')[-500:]}"
            )
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz").is_success:
                return
        time.sleep(_POLL_SECONDS)
    raise FasterVLMError(f"the service was not ready after {_START_SECONDS:.0f} s")


def _print(load: Load, costs: Calibration, sizing: Sizing) -> None:
    console = wide_console()
    console.print(
        f"{load.questions_per_second:g} questions per second, {load.hit_share:.0%} of them about cached videos, "
        f"{sizing.visual_tokens} visual tokens kept each ({load.keep_ratio:.0%})",
        highlight=False,
    )
    console.print(f"Measured: {costs.model} on {costs.machine}", markup=False, highlight=False)
    table = Table("stage", "replicas", "busy", "seconds each", "waiting", "in flight")
    for name, stage in (("Decoder", sizing.decoder), ("Encoder", sizing.encoder), ("Generator", sizing.generator)):
        table.add_row(name, *_cells(stage))
    console.print(table)
    console.print(
        f"A question then takes about {sizing.hit_seconds:.2f} s if its video is cached, {sizing.miss_seconds:.2f} s "
        f"if not. Replicas may be busy {load.target:.0%} of the time.",
        highlight=False,
    )


def _cells(stage: StageSize) -> tuple[str, ...]:
    return (
        str(stage.replicas),
        f"{stage.utilisation:.0%}",
        f"{stage.busy_seconds:.3f}",
        f"{stage.waiting_seconds:.3f} s",
        f"{stage.in_flight:.2f}",
    )
