"""This machine's pip configuration, for the build: where packages come from here, without naming any place."""

import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import unquote, urlparse

__all__ = ["host_pip_config", "pip_volumes", "read_pip_config"]

_FORWARDED = {
    *("index-url", "extra-index-url", "find-links", "no-index", "trusted-host"),
    *("cert", "client-cert", "proxy", "constraint", "timeout", "default-timeout", "retries"),
}
_PRECEDENCE = ("global", "user", "site", ":env:")
_INDEXES = {"index-url", "extra-index-url"}


def read_pip_config() -> str:
    """What ``pip config list`` says here, environment variables included."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def host_pip_config(listing: str) -> ConfigParser:
    """The part of a ``pip config list`` that says where packages come from, as one file.

    Args:
        listing: lines such as ``global.index-url='https://...'``; ``:env:`` stands for environment variables.
    """
    found: dict[str, dict[str, str]] = {variant: {} for variant in _PRECEDENCE}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        variant, _, key = name.partition(".")
        if key in _FORWARDED and variant in found:
            found[variant][key] = value.strip("'\"").replace("\\n", " ")
    config = ConfigParser(interpolation=None)
    config["global"] = {key: value for variant in _PRECEDENCE for key, value in found[variant].items()}
    return config


def pip_volumes(config: ConfigParser) -> list[str]:
    """Local files and folders that the configuration names, as ``path:path:ro`` for ``buildah build --volume``."""
    paths = {path for key, value in config["global"].items() for path in _local_paths(key, value)}
    return [f"{path}:{path}:ro" for path in sorted(paths)]


def _local_paths(key: str, value: str) -> Iterator[Path]:
    for word in value.split():
        path = Path(unquote(urlparse(word).path)) if word.startswith("file://") else Path(word)
        if path.is_absolute() and path.exists():
            yield path.parent if key in _INDEXES else path  # an index's pages may link to files beside it
