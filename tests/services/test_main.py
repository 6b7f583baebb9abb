import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "[/red]"), ("PORT", "0"), ("DEFAULT_KEEP_RATIO", "2"), ("ENCODER__MIN_REPLICAS", "[bold]")],
)
def test_settings_that_cannot_be_used_are_told_in_one_line(name: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, f"FASTERVLM_{name}": value},
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: bad settings: ")
    assert f"FASTERVLM_{name}" in line
    assert f"got '{value}'" in line
    assert (done.returncode, done.stdout) == (2, "")
