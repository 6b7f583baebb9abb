"""Running the command line as its users do."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PROGRAM = Path(sys.executable).parent / "fastervlm-video"

Run = Callable[..., "Outcome"]


class Outcome:
    """Exit status and output of one command."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def error(self) -> str:
        """The one line of an error."""
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")


def run_program(*args: object, home: Path) -> Outcome:
    """The installed command, in a process of its own, with an empty home."""
    environment = {**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("XDG_CACHE_HOME", None)
    done = subprocess.run(
        [PROGRAM, *map(str, args)], capture_output=True, text=True, timeout=180, check=False, env=environment
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
