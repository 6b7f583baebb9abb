"""``docker-compose.yml`` as Compose reads it, for a machine without a container engine."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
COMPOSE_FILE = ROOT / "docker-compose.yml"
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def env_file(path: Path = ROOT / ".env.example") -> dict[str, str]:
    """Variables of an env file."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def interpolate(text: str, variables: dict[str, str]) -> str:
    """Fill in ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}``.

    Raises:
        KeyError: a variable that has to be set is not.
    """

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if found := variables.get(name):
            return found
        if kind == "?":
            raise KeyError(f"{name}: {rest}")
        return rest or ""

    return _VARIABLE.sub(value, text)


def compose(variables: dict[str, str] | None = None) -> dict[str, Any]:
    """The file with these variables, or those of the example, filled in."""
    text = interpolate(COMPOSE_FILE.read_text(), env_file() if variables is None else variables)
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded
