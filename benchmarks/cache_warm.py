"""What does a cached video's tokens cost, compared with fetching the same bytes and doing nothing with them?

An entry of 8 frames x 64 tokens x 1024 numbers (Video-LLaVA-7B at a quarter of its tokens) in a real redis-server, over
a unix socket and over TCP on the loopback, stored as float16 and as int8. In random order, so that a slow spell hits
all, and none has the processor's caches as another likes to leave them:

- ``redis-py``: a bare ``HGET`` by redis-py as it comes; the yardstick;
- ``socket``: the same request and answer on a bare socket into memory that is already there; no client can be faster;
- ``lookup``: ``TokenCache.lookup``: fetched, checked (checksum, finite), ready to be projected;
- ``get``, ``decode``, ``checksum``, ``finite``: what ``lookup`` consists of, and the two largest parts of ``decode``.

    python benchmarks/cache_warm.py --json warm.json
"""

import argparse
import json
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import torch

from fastervlm_video.cache import (
    CacheKey,
    RedisStore,
    Storage,
    TokenCache,
    decode_tokens,
    encode_tokens,
    find_redis_server,
    read_header,
)
from fastervlm_video.vision import VisualTokens

FRAMES, TOKENS, WIDTH, GRID = 8, 64, 1024, (16, 16)
TOWER = "benchmark"
START_SECONDS = 10.0
LARGE_BYTES = 30 * 1024**2

Arms = dict[str, Callable[[], object]]


def main() -> int:
    """Time all arms, print a table; the exit status says whether the target was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000, help="of every arm once (default 1000)")
    parser.add_argument("--quick", action="store_true", help="100 rounds")
    parser.add_argument("--target", type=float, default=1.5, help="highest ratio of p50 that passes (default 1.5)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settle_the_allocator()
    results = []
    with redis_server() as addresses:
        for transport, url in addresses.items():
            for dtype in (Storage.FLOAT16, Storage.INT8):
                seconds = measure(make_arms(url, dtype), 100 if options.quick else options.rounds)
                results.append(report(transport, dtype, seconds))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if max(result["lookup_to_redis_py"] for result in results) <= options.target else 1


def settle_the_allocator() -> None:
    """Have glibc keep freed memory, as it does once a large block was freed: in a service, while the model is loaded.

    Until then, each megabyte may be given back to the system and taken again page by page, whoever asks for it.
    """
    torch.empty(LARGE_BYTES, dtype=torch.uint8).fill_(0)


@contextmanager
def redis_server() -> Iterator[dict[str, str]]:
    """The addresses of one server, by transport, while it runs."""
    folder = Path(tempfile.mkdtemp(prefix="fv"))
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    path = folder / "redis.sock"
    binary, options = str(find_redis_server()), ("--bind", "127.0.0.1", "--save", "", "--loglevel", "warning")
    command = [binary, "--port", str(port), "--unixsocket", str(path), *options]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        began = time.monotonic()
        while not path.exists():
            if server.poll() is not None or time.monotonic() - began > START_SECONDS:
                raise SystemExit(f"{command[0]} does not start")
            time.sleep(0.01)
        yield {"unix": f"unix://{path}", "tcp": f"redis://127.0.0.1:{port}"}
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder)


def make_tokens() -> VisualTokens:
    """Random features; the cost does not depend on the values."""
    generator = torch.Generator().manual_seed(0)
    patches = GRID[0] * GRID[1]
    return VisualTokens(
        features=torch.randn(FRAMES * TOKENS, WIDTH, generator=generator),
        indices=torch.cat([torch.randperm(patches, generator=generator)[:TOKENS] for _ in range(FRAMES)]).int(),
        scores=torch.rand(FRAMES, TOKENS, generator=generator).sort(descending=True).values.flatten(),
        counts=(TOKENS,) * FRAMES,
        grid=GRID,
        pts_seconds=tuple(map(float, range(FRAMES))),
        method="cls_attention",
        nested=True,
        fingerprint=TOWER,
    )


def make_arms(url: str, dtype: Storage) -> Arms:
    """One entry, and everything that is done with it."""
    key = CacheKey(video="0" * 64, variant=dtype.encode().hex().rjust(64, "0"))
    store = RedisStore(url, operation_timeout_seconds=10)
    cache, blob = TokenCache(store, dtype=dtype), encode_tokens(make_tokens(), dtype=dtype)
    if not cache.insert(key, blob):
        raise SystemExit("the entry cannot be stored")
    name, field = f"fastervlm:video:{key.video}", f"{key.variant}.b"
    bare: Any = redis.Redis.from_url(url)
    connection, request = connect(url), packed("HGET", name, field)
    answer = bytearray(len(b"$%d\r\n" % len(blob)) + len(blob) + 2)
    header, tokens = read_header(blob), decode_tokens(blob)
    payload, numbers = memoryview(blob)[header.header_size :], tokens.features
    own = bytearray(blob)  # as the store hands it out; its tensors are dropped before it is used again
    arms: Arms = {
        "redis-py": lambda: bare.hget(name, field),
        "socket": lambda: exchange(connection, request, answer),
        "lookup": lambda: cache.lookup(key, TOKENS, TOWER),
        "get": lambda: store.get(key),
        "decode": lambda: decode_tokens(own, expect_fingerprint=TOWER, in_place=True),
        "checksum": lambda: zlib.crc32(payload),
        "finite": numbers.aminmax,
    }
    found = cache.lookup(key, TOKENS, TOWER)
    if found is None or not torch.equal(found.features, tokens.features) or arms["redis-py"]() != blob:
        raise SystemExit("what was stored is not what is read")
    exchange(connection, request, answer)
    if answer[-len(blob) - 2 : -2] != blob:
        raise SystemExit("what was stored is not what the socket reads")
    return arms


def connect(url: str) -> socket.socket:
    """A socket as redis-py would make it."""
    if url.startswith("unix://"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(url.removeprefix("unix://"))
        return sock
    host, _, port = url.removeprefix("redis://").partition(":")
    sock = socket.create_connection((host, int(port)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def packed(*words: str) -> bytes:
    """A command as it is sent."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words)


def exchange(connection: socket.socket, request: bytes, answer: bytearray) -> None:
    """Ask, and receive exactly as much as the answer is long."""
    connection.sendall(request)
    received, view = 0, memoryview(answer)
    while received < len(answer):
        received += connection.recv_into(view[received:])


def measure(arms: Arms, rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, sorted; each round in another order."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    order, lots = list(arms), random.Random(0)
    for number in range(rounds + 10):
        lots.shuffle(order)
        for name in order:
            began = time.perf_counter()
            arms[name]()
            taken = time.perf_counter() - began
            if number >= 10:  # the first ones warm up
                seconds[name].append(taken)
    return {name: sorted(values) for name, values in seconds.items()}


def report(transport: str, dtype: Storage, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Print a table of one transport and storage, and return its numbers."""
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    tail = {name: values[int(0.95 * (len(values) - 1))] for name, values in seconds.items()}
    yardstick = middle["redis-py"]
    print(f"\n{transport}, {dtype}, {len(seconds['lookup'])} rounds")
    print(f"{'':>10} {'p50 ms':>8} {'p95 ms':>8} {'to redis-py':>12}")
    for name in seconds:
        print(f"{name:>10} {1e3 * middle[name]:8.3f} {1e3 * tail[name]:8.3f} {middle[name] / yardstick:12.2f}")
    return {
        "transport": transport,
        "dtype": dtype.value,
        "p50_seconds": middle,
        "p95_seconds": tail,
        "lookup_to_redis_py": middle["lookup"] / yardstick,
        "lookup_to_redis_py_p95": tail["lookup"] / tail["redis-py"],
    }


if __name__ == "__main__":
    sys.exit(main())
