import asyncio
import gzip
import io
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fastervlm_video.errors import DeadlineExceededError, PayloadTooLargeError, UrlFetchError, UrlNotAllowedError
from services.fetch import fetch_file, resolve_host
from services.url_policy import UrlPolicy
from tests.services.certificates import write_self_signed
from tests.services.live import QuietHandler, serve_http

HOST = "video.example.test"
LOOPBACK = ("127.0.0.0/8",)
VIDEO = random.Random(0).randbytes(700_000)
LIMIT = 1_000_000
LIVENESS_SECONDS = 30.0


class Origin:
    """A scripted web server; remembers the paths asked for and the headers of the last request."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.headers: dict[str, str] = {}
        self.port = 0
        self.stop = threading.Event()

    def respond(self, handler: QuietHandler) -> None:
        self.paths.append(handler.path)
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        name, _, argument = handler.path.lstrip("/").partition("/")
        getattr(self, name)(handler, argument)

    def video(self, handler: QuietHandler, _: str) -> None:
        self.reply(handler, 200, VIDEO, {"Content-Length": str(len(VIDEO))})

    def unsized(self, handler: QuietHandler, count: str) -> None:
        self.reply(handler, 200, b"x" * int(count), {})

    def oversized(self, handler: QuietHandler, count: str) -> None:
        self.reply(handler, 200, b"", {"Content-Length": count})

    def status(self, handler: QuietHandler, code: str) -> None:
        self.reply(handler, int(code), b"secret internals", {"Content-Length": "16"})

    def go(self, handler: QuietHandler, target: str) -> None:
        self.reply(handler, 302, b"secret", {"Location": target, "Set-Cookie": "session=1"})

    def nowhere(self, handler: QuietHandler, _: str) -> None:
        self.reply(handler, 301, b"", {})

    def loop(self, handler: QuietHandler, _: str) -> None:
        self.reply(handler, 307, b"", {"Location": "/loop"})

    def hops(self, handler: QuietHandler, left: str) -> None:
        self.reply(handler, 308, b"", {"Location": f"/hops/{int(left) - 1}" if left != "1" else "/video"})

    def zipped(self, handler: QuietHandler, _: str) -> None:
        self.reply(handler, 200, gzip.compress(b"x" * 100), {"Content-Encoding": "gzip"})

    def truncated(self, handler: QuietHandler, _: str) -> None:
        self.reply(handler, 200, b"only this", {"Content-Length": "1000"})

    def drip(self, handler: QuietHandler, _: str) -> None:
        self.reply(handler, 200, b"", {"Content-Length": "1000"})
        for _byte in range(1000):
            handler.wfile.write(b"x")
            if self.stop.wait(0.02):
                return

    def silent(self, handler: QuietHandler, _: str) -> None:
        self.stop.wait(LIVENESS_SECONDS)

    @staticmethod
    def reply(handler: QuietHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    with serve_http(origin.respond) as origin.port:
        yield origin
        origin.stop.set()


class Resolver:
    """Answers with each of ``answers`` in turn, then with the last one again."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers, self.asked = list(answers), list[str]()

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self._answers[min(len(self.asked), len(self._answers)) - 1]


def policy_for(origin: Origin, *more_hosts: str, networks: Sequence[str] = LOOPBACK, redirects: int = 3) -> UrlPolicy:
    return UrlPolicy.of([f"{HOST}:{origin.port}", f"127.0.0.1:{origin.port}", *more_hosts], networks, redirects)


async def fetch(
    origin: Origin,
    path: str,
    *,
    policy: UrlPolicy | None = None,
    resolver: Callable[..., object] | None = None,
    host: str = HOST,
    timeout_seconds: float = LIVENESS_SECONDS,
    scheme: str = "http",
    ssl_context: ssl.SSLContext | None = None,
) -> bytes:
    sink = io.BytesIO()
    count = await fetch_file(
        f"{scheme}://{host}:{origin.port}{path}",
        policy=policy or policy_for(origin),
        limit_bytes=LIMIT,
        timeout_seconds=timeout_seconds,
        sink=sink,
        resolver=resolver or Resolver(["127.0.0.1"]),  # type: ignore[arg-type]
        ssl_context=ssl_context,
    )
    assert count == len(sink.getvalue())
    return sink.getvalue()


async def test_a_download_and_what_the_host_is_told(origin: Origin) -> None:
    assert await fetch(origin, "/video") == VIDEO
    assert origin.headers == {
        "host": f"{HOST}:{origin.port}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "user-agent": "fastervlm-video",
        "connection": "close",
    }


async def test_the_systems_resolver_and_addresses_in_urls(origin: Origin) -> None:
    policy = policy_for(origin, f"localhost:{origin.port}", networks=("127.0.0.0/8", "::1/128"))
    assert await fetch(origin, "/video", host="localhost", policy=policy, resolver=resolve_host) == VIDEO
    resolver = Resolver()
    assert await fetch(origin, "/video", host="127.0.0.1", resolver=resolver) == VIDEO
    assert resolver.asked == []


@pytest.mark.parametrize("count", [0, 1, LIMIT])
async def test_bodies_of_unknown_length_up_to_the_limit(origin: Origin, count: int) -> None:
    assert await fetch(origin, f"/unsized/{count}") == b"x" * count


@pytest.mark.parametrize("path", [f"/unsized/{LIMIT + 1}", f"/oversized/{LIMIT + 1}", f"/unsized/{LIMIT * 40}"])
async def test_too_large_is_cut(origin: Origin, path: str) -> None:
    sink = io.BytesIO()
    with pytest.raises(PayloadTooLargeError, match=str(LIMIT)):
        await fetch_file(
            f"http://127.0.0.1:{origin.port}{path}",
            policy=policy_for(origin),
            limit_bytes=LIMIT,
            timeout_seconds=LIVENESS_SECONDS,
            sink=sink,
        )
    assert len(sink.getvalue()) <= LIMIT


async def test_redirects_are_followed_up_to_their_number(origin: Origin) -> None:
    assert await fetch(origin, "/hops/3") == VIDEO
    assert origin.paths == ["/hops/3", "/hops/2", "/hops/1", "/video"]
    assert "cookie" not in origin.headers
    with pytest.raises(UrlFetchError, match="more than 3 times"):
        await fetch(origin, "/hops/4")
    with pytest.raises(UrlFetchError, match="more than 0 times"):
        await fetch(origin, "/hops/1", policy=policy_for(origin, redirects=0))


async def test_redirect_loops_end(origin: Origin) -> None:
    with pytest.raises(UrlFetchError, match="more than 3 times"):
        await fetch(origin, "/loop")
    assert len(origin.paths) == 4


async def test_cookies_are_not_carried_along(origin: Origin) -> None:
    assert await fetch(origin, f"/go/http://127.0.0.1:{origin.port}/video") == VIDEO
    assert "cookie" not in origin.headers
    assert origin.headers["host"] == f"127.0.0.1:{origin.port}"


@pytest.mark.parametrize(
    "target",
    [
        "http://other.example.test/",
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:1/",
        "//169.254.169.254/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "http://user:pw@video.example.test/",
        "http://[::1]/",
        "http://[bad/",
        "http://127.1/",
        "http://2130706433/",
    ],
)
async def test_redirects_to_other_places_are_refused_without_naming_them(origin: Origin, target: str) -> None:
    with pytest.raises(UrlNotAllowedError) as caught:
        await fetch(origin, f"/go/{target}")
    assert caught.value.message == "the URL redirects to a place that is not allowed"
    assert len(origin.paths) == 1


async def test_a_listed_host_that_redirects_to_metadata_is_stopped_at_the_address(origin: Origin) -> None:
    policy = policy_for(origin, "169.254.169.254", "metadata.example.test")
    for target in ("http://169.254.169.254/", "http://metadata.example.test/"):
        resolver = Resolver(["127.0.0.1"], ["169.254.169.254"])
        with pytest.raises(UrlNotAllowedError, match="not public") as caught:
            await fetch(origin, f"/go/{target}", policy=policy, resolver=resolver)
        assert "169.254" not in caught.value.message


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["::1"], ["::ffff:127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["10.0.0.1"], ["0.0.0.0"], ["junk"]],
)
async def test_names_of_private_addresses_are_refused_before_any_connection(
    origin: Origin, addresses: list[str]
) -> None:
    with pytest.raises(UrlNotAllowedError) as caught:
        await fetch(origin, "/video", policy=policy_for(origin, networks=()), resolver=Resolver(addresses))
    assert not any(address in caught.value.message for address in addresses)
    assert origin.paths == []


async def test_localhost_is_refused_although_it_is_listed(origin: Origin) -> None:
    policy = policy_for(origin, f"localhost:{origin.port}", networks=())
    with pytest.raises(UrlNotAllowedError, match="not public"):
        await fetch(origin, "/video", host="localhost", policy=policy, resolver=resolve_host)
    with pytest.raises(UrlNotAllowedError, match="not public"):
        await fetch(origin, "/video", host="127.0.0.1", policy=policy)
    assert origin.paths == []


async def test_the_connection_goes_to_the_address_that_was_checked(origin: Origin) -> None:
    """DNS rebinding: a second answer would lead to another server, on the same port of another address."""
    checked = Origin()
    with serve_http(checked.respond, host="127.0.0.2", port=origin.port) as checked.port:
        resolver = Resolver(["127.0.0.2"], ["127.0.0.1"])
        policy = policy_for(origin, networks=("127.0.0.2/32",))
        assert await fetch(origin, "/video", policy=policy, resolver=resolver) == VIDEO
        assert (checked.paths, origin.paths, resolver.asked) == (["/video"], [], [HOST])

        rebound = Resolver(["127.0.0.2"], ["127.0.0.1"])
        with pytest.raises(UrlNotAllowedError, match="not public"):
            await fetch(origin, "/hops/1", policy=policy, resolver=rebound)
        assert (rebound.asked, origin.paths) == ([HOST, HOST], [])


async def test_a_host_with_a_dead_address_is_reached_at_its_next(origin: Origin) -> None:
    assert await fetch(origin, "/video", resolver=Resolver(["127.0.0.3", "127.0.0.1"])) == VIDEO


async def test_environment_proxies_are_not_used(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await fetch(origin, "/video") == VIDEO


@pytest.mark.parametrize("code", [201, 204, 206, 304, 400, 401, 404, 429, 500, 503])
async def test_other_statuses_are_told_but_not_their_bodies(origin: Origin, code: int) -> None:
    with pytest.raises(UrlFetchError, match=f"status {code}") as caught:
        await fetch(origin, f"/status/{code}")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("path", "words"),
    [("/zipped", "gzip"), ("/truncated", "broke off"), ("/nowhere", "leads nowhere")],
)
async def test_answers_that_cannot_be_used(origin: Origin, path: str, words: str) -> None:
    with pytest.raises(UrlFetchError, match=words):
        await fetch(origin, path)


async def test_no_such_host_and_no_connection(origin: Origin) -> None:
    async def unknown(host: str, port: int) -> list[str]:
        raise OSError("no such host")

    for resolver, words in ((unknown, "could not be resolved"), (Resolver([]), "no address")):
        with pytest.raises(UrlFetchError, match=words):
            await fetch(origin, "/video", resolver=resolver)
    with pytest.raises(UrlFetchError, match="no connection") as caught:
        await fetch(origin, "/video", resolver=Resolver(["127.0.0.9"]))
    assert "127.0.0.9" not in caught.value.message


@pytest.mark.parametrize("path", ["/drip", "/silent"])
async def test_the_time_limit_covers_slow_hosts(origin: Origin, path: str) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"0\.4 s"):
        await fetch(origin, path, timeout_seconds=0.4)
    assert time.monotonic() - started < LIVENESS_SECONDS / 2


async def test_the_time_limit_covers_slow_name_servers(origin: Origin) -> None:
    async def slow(host: str, port: int) -> list[str]:
        await asyncio.sleep(LIVENESS_SECONDS)
        return []

    with pytest.raises(DeadlineExceededError):
        await fetch(origin, "/video", resolver=slow, timeout_seconds=0.2)


async def test_a_cancelled_download_has_stopped_writing(origin: Origin) -> None:
    writing, release = threading.Event(), threading.Event()

    class Slow(io.BytesIO):
        def write(self, data: object, /) -> int:
            writing.set()
            release.wait(LIVENESS_SECONDS)
            return super().write(data)  # type: ignore[arg-type]

    sink = Slow()
    task = asyncio.ensure_future(
        fetch_file(
            f"http://127.0.0.1:{origin.port}/video",
            policy=policy_for(origin),
            limit_bytes=LIMIT,
            timeout_seconds=LIVENESS_SECONDS,
            sink=sink,
        )
    )
    await asyncio.to_thread(writing.wait, LIVENESS_SECONDS)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=0.1)
    assert not done  # the write that has begun is waited for
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(sink.getvalue()) > 0


async def test_tls_is_verified_against_the_name_and_not_the_address(tmp_path: Path) -> None:
    certificate = write_self_signed(tmp_path / f"{HOST}.pem", HOST)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    names: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: names.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate))
    origin = Origin()
    with serve_http(origin.respond, tls=server) as origin.port:
        policy = policy_for(origin, f"other.example.test:{origin.port}")
        assert await fetch(origin, "/video", scheme="https", ssl_context=trusting, policy=policy) == VIDEO
        assert names == [HOST]
        for host, context in (("other.example.test", trusting), (HOST, None), ("127.0.0.1", trusting)):
            with pytest.raises(UrlFetchError, match="no connection"):
                await fetch(origin, "/video", scheme="https", host=host, ssl_context=context, policy=policy)
        assert origin.paths == ["/video"]
