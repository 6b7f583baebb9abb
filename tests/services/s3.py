"""A real HTTP server that speaks S3, for what keeps files there."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx

BUCKET = "videos"
START_SECONDS = 120.0


@contextlib.contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Start it, with an empty bucket; gives the variables by which clients find it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url, command = f"http://127.0.0.1:{port}", [sys.executable, "-W", "ignore", "-m", "moto.server"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.Popen(
        [*command, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=own
    )
    try:
        _wait_until_it_answers(url)
        httpx.put(f"{url}/{BUCKET}", timeout=START_SECONDS).raise_for_status()
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        process.kill()
        process.wait()


def _wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            httpx.get(url, timeout=START_SECONDS)
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.1)
        else:
            return
