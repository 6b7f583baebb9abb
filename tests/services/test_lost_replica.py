"""An application that now and then returns without having answered, as Serve's proxy does when a replica has died."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from services.lost_replica import LostReplicaMiddleware
from tests.services.live import serve_asgi, wait_until

KEPT_BYTES = 100_000


class Dying:
    """Answers with the body it has read, after it has died a number of times, each time with some of it read.

    Attributes:
        deaths: still to die.
        reads: messages that are read before dying.
        calls: how often it was asked.
        begins: whether it begins its answer before it dies.
    """

    def __init__(self) -> None:
        self.deaths, self.reads, self.calls, self.begins = 0, 1, 0, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        scope["path"] = "/changed"  # as routers do
        if self.deaths:
            self.deaths -= 1
            for _ in range(self.reads):
                if not (await receive()).get("more_body"):
                    break
            if self.begins:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"half", "more_body": True})
            return
        body, more = b"", True
        while more:
            message: Message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def app() -> Dying:
    return Dying()


@pytest.fixture
def client(app: Dying) -> Iterator[httpx.Client]:
    wrapped = LostReplicaMiddleware(app, repeated_paths=("/v1/ask",), kept_body_bytes=KEPT_BYTES)
    with serve_asgi(wrapped) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def _pieces() -> Iterator[bytes]:
    for number in range(20):
        yield b"%d," % number * 500


@pytest.mark.parametrize("path", ["/v1/ask", "/prefix/v1/ask"])
@pytest.mark.parametrize("reads", [0, 1])
def test_a_question_is_put_again_whatever_was_read_of_it(
    app: Dying, client: httpx.Client, path: str, reads: int
) -> None:
    app.deaths, app.reads = 1, reads
    answer = client.post(path, content=_pieces())
    assert (answer.status_code, answer.content) == (200, b"".join(_pieces()))
    assert app.calls == 2


def test_an_answer_is_passed_on_untouched(app: Dying, client: httpx.Client) -> None:
    assert client.post("/v1/ask", content=b"question").content == b"question"
    assert app.calls == 1


def test_what_only_reads_is_asked_again(app: Dying, client: httpx.Client) -> None:
    app.deaths = 1
    assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("deaths", "path", "size", "calls"),
    [(2, "/v1/ask", 10, 2), (1, "/v1/files", 10, 1), (1, "/v1/ask", KEPT_BYTES + 1, 1)],
    ids=["twice", "what changes something", "too large to be kept"],
)
def test_otherwise_the_client_is_told_to(
    app: Dying, client: httpx.Client, deaths: int, path: str, size: int, calls: int
) -> None:
    app.deaths, app.reads = deaths, 1 if size <= KEPT_BYTES else 99  # all of a large body
    answer = client.post(path, content=bytes(size))
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "unavailable"
    assert "again" in answer.json()["error"]["message"]
    assert app.calls == calls


def test_an_answer_that_has_begun_is_not_begun_again(app: Dying, client: httpx.Client) -> None:
    app.deaths, app.begins = 1, True
    with pytest.raises(httpx.RemoteProtocolError):
        client.post("/v1/ask", content=b"question")
    assert app.calls == 1


def test_nobody_is_asked_for_a_client_that_has_left() -> None:
    calls = 0

    async def dying(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        calls += 1
        while (await receive())["type"] != "http.disconnect":
            pass

    with serve_asgi(LostReplicaMiddleware(dying, repeated_paths=("/v1/ask",))) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/ask", content=b"question", timeout=0.5)
        wait_until(lambda: calls == 1)
    assert calls == 1


async def test_other_connections_are_passed_on() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await asyncio.sleep(0)

    async def nothing() -> Message:
        raise AssertionError

    async def sink(message: Message) -> None:
        raise AssertionError

    await LostReplicaMiddleware(app, repeated_paths=())({"type": "websocket"}, nothing, sink)
    assert seen == [{"type": "websocket"}]
