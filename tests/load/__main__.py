"""``python -m tests.load``: start the service, load it, say how it was, stop it. Variables are in ``locustfile.py``."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from services.run import running_service
from services.settings import load_settings

__all__ = ["load", "main"]

_OUT = "load-report"
_LOCUSTFILE = Path(__file__).with_name("locustfile.py")
_GRACE_SECONDS = 300.0


def load(url: str, out: Path, *, seconds: float, users: int, **chosen: str) -> "subprocess.CompletedProcess[str]":
    """Let Locust at a running service.

    Args:
        url: of the service.
        out: folder for ``report.html``, ``locust.json`` and ``summary.json``; is made.
        seconds: that it takes.
        users: at its height.
        **chosen: ``shape`` and ``mix``, as in ``locustfile.py``.

    Returns:
        The ended process, with what it has printed: exit status 0 if nothing failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    variables = {f"LOAD_{name.upper()}": value for name, value in chosen.items()}
    variables |= {"LOAD_SECONDS": f"{seconds:g}", "LOAD_USERS": str(users), "LOAD_OUT": str(out.absolute())}
    options = ["--headless", "--only-summary", "--host", url, "--stop-timeout", "30"]
    options += ["--html", str(out / "report.html"), "--json-file", str(out / "locust")]
    if not variables.get("LOAD_SHAPE"):
        options += ["--users", str(users), "--spawn-rate", str(users), "--run-time", f"{seconds:g}s"]
    return subprocess.run(
        [sys.executable, "-m", "locust", "-f", str(_LOCUSTFILE), *options],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds + _GRACE_SECONDS,
        check=False,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def main() -> int:
    """Run it; returns the exit status."""
    seconds, users = float(os.environ.get("LOAD_SECONDS", "120")), int(os.environ.get("LOAD_USERS", "8"))
    chosen = {
        name: os.environ.get(f"LOAD_{name.upper()}", default) for name, default in (("shape", ""), ("mix", "typical"))
    }
    out = Path(os.environ.get("LOAD_OUT", _OUT))
    with tempfile.TemporaryDirectory(prefix="fastervlm-load-") as runtime_dir:
        settings = load_settings(runtime_dir=Path(runtime_dir), port=_free_port(), log_level="WARNING")
        print("Starting the service ...", flush=True)
        with running_service(settings, show_logs=False) as url:
            print(
                f"{users} users for {seconds:.0f} s, mix {chosen['mix']}, shape {chosen['shape'] or 'none'}", flush=True
            )
            ended = load(url, out, seconds=seconds, users=users, **chosen)
    print(ended.stdout)
    print(f"Reports are in {out}: report.html, locust.json, summary.json. The service is stopped.")
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main())
