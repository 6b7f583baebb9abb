import asyncio
import os
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect

from fastervlm_video.errors import InvalidRequestError
from services.http_errors import install_error_handlers
from services.uploads import ParsedForm, parse_multipart
from tests.services.live import serve_asgi, wait_until

MAX_FILE = 3 * 1024**2
BOUNDARY = "frontier"
HEADERS = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(disposition: str, content: bytes = b"", extra: str = "") -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n{extra}\r\n"
    return head.encode() + content + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


FILE = part('form-data; name="file"; filename="a.mp4"', b"video")
QUESTION = part('form-data; name="question"', "où?".encode())


def make_app(directory: Path, forms: list[ParsedForm]) -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)

    @app.post("/")
    async def upload(request: Request) -> dict[str, object]:
        async with parse_multipart(
            request, directory=directory, max_file_bytes=MAX_FILE, max_fields=3, max_field_bytes=100
        ) as form:
            forms.append(form)
            if form.file is None:
                return {"fields": form.fields}
            data = form.file.file.read()
            assert len(data) == form.file.size_bytes
            if form.fields.get("fail"):
                raise InvalidRequestError("as asked")
            return {"fields": form.fields, "name": form.file.filename, "data": data.hex()}

    return app


class Server:
    def __init__(self, url: str, forms: list[ParsedForm], directory: Path) -> None:
        self.url, self.forms, self.directory = url, forms, directory

    def post(self, content: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
        return httpx.post(self.url, content=content, headers=HEADERS if headers is None else headers)

    def open_temporaries(self) -> list[str]:
        """What this process has open, or what lies, in the folder for temporary files."""
        handles = []
        for handle in Path("/proc/self/fd").iterdir():
            try:
                handles.append(os.readlink(handle))
            except FileNotFoundError:  # the listing's own handle
                continue
        return [h for h in handles if h.startswith(str(self.directory))] + [str(p) for p in self.directory.iterdir()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("spool")
    forms: list[ParsedForm] = []
    with serve_asgi(make_app(directory, forms)) as url:
        yield Server(url, forms, directory)


@pytest.fixture(autouse=True)
def nothing_is_left(server: Server) -> Iterator[None]:
    yield
    assert server.open_temporaries() == []


def test_fields_and_file_arrive(server: Server) -> None:
    response = server.post(body(QUESTION, FILE, part('form-data; name="empty"')))
    assert response.json() == {
        "fields": {"question": "où?", "empty": ""},
        "name": "a.mp4",
        "data": b"video".hex(),
    }
    file = server.forms[-1].file
    assert file is not None
    assert file.file.closed


@pytest.mark.parametrize("size_bytes", [0, 1, 65_536, 1024**2 + 1, MAX_FILE])
def test_content_is_kept_to_the_byte(server: Server, size_bytes: int) -> None:
    data = random.Random(size_bytes).randbytes(size_bytes)
    response = httpx.post(server.url, files={"file": ("x.bin", data)}, data={"question": "q"})
    assert response.json() == {"fields": {"question": "q"}, "name": "x.bin", "data": data.hex()}


def test_content_that_looks_like_a_boundary_is_kept(server: Server) -> None:
    tricky = f"\r\n--{BOUNDARY[:-1]}\r\n--\r\n\r\n--{BOUNDARY}x".encode()
    response = server.post(body(part('form-data; name="file"; filename="t"', tricky)))
    assert bytes.fromhex(response.json()["data"]) == tricky


def test_no_file_and_a_file_input_left_empty(server: Server) -> None:
    assert server.post(body(QUESTION)).json() == {"fields": {"question": "où?"}}
    empty = part('form-data; name="file"; filename=""')
    assert server.post(body(QUESTION, empty)).json() == {"fields": {"question": "où?"}}
    assert server.forms[-1].file is None


def test_a_body_in_single_bytes(server: Server) -> None:
    content = body(QUESTION, FILE)
    response = httpx.post(server.url, content=(content[i : i + 1] for i in range(len(content))), headers=HEADERS)
    assert response.json()["data"] == b"video".hex()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (body(FILE, FILE), "several"),
        (body(QUESTION, QUESTION), "'question' is sent more than once"),
        (body(FILE, part('form-data; name="file"', b"x")), "'file' is sent more than once"),
        (body(part('form-data; name="file"', b"x"), FILE), "several"),
        (body(part('form-data; name="video"; filename="a.mp4"', b"x")), "'video'"),
        (body(part("form-data", b"x")), "with a name"),
        (body(part('attachment; name="question"', b"x")), "with a name"),
        (body(*(part(f'form-data; name="f{i}"') for i in range(4))), "at most 3 fields"),
        (body(part('form-data; name="question"', b"x" * 101)), "at most 100 bytes"),
        (body(part('form-data; name="question"', b"\xff\xfe")), "UTF-8"),
        (body(part(f'form-data; name="{"n" * 65}"')), "at most 64 characters"),
        (body(QUESTION, FILE)[:-20], "closing boundary"),
        (body(part('form-data; name="question"', extra="".join(f"X-{i}: y\r\n" for i in range(20)))), "malformed"),
        (b"", "closing boundary"),
        (b"not multipart at all", "malformed"),
        (f"--{BOUNDARY}\r\nno header here\r\n\r\n".encode(), "malformed"),
    ],
)
def test_malformed_forms_are_refused_with_the_reason(server: Server, content: bytes, words: str) -> None:
    response = server.post(content)
    detail = response.json()["error"]
    assert (response.status_code, detail["code"]) == (400, "invalid_request")
    assert words in detail["message"]


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        (f"multipart/form-data; boundary={'x' * 500}", 400),
        ("application/json", 415),
        ("", 415),
    ],
)
def test_content_types(server: Server, content_type: str, status: int) -> None:
    assert server.post(b"{}", {"content-type": content_type}).status_code == status


def test_a_file_over_its_limit_is_cut(server: Server) -> None:
    response = httpx.post(server.url, files={"file": ("x", b"x" * (MAX_FILE + 1))})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")


def test_a_route_that_fails_leaves_nothing(server: Server) -> None:
    response = httpx.post(server.url, files={"file": ("x", b"x" * MAX_FILE)}, data={"fail": "yes"})
    assert response.json()["error"]["message"] == "as asked"


def test_a_client_that_goes_away_leaves_nothing(server: Server) -> None:
    host, port = re.findall(r"//(.+):(\d+)", server.url)[0]
    count = len(server.forms)
    with socket.create_connection((host, int(port)), timeout=10) as client:
        head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: {HEADERS['content-type']}\r\nContent-Length: 9999999"
        client.sendall(f"{head}\r\n\r\n".encode())
        client.sendall(part('form-data; name="file"; filename="a"', b"x" * (2 * 1024**2)))
        wait_until(lambda: server.open_temporaries() != [])
    wait_until(lambda: server.open_temporaries() == [])
    assert all(form.file is None for form in server.forms[count:])


async def test_a_cut_connection_is_an_invalid_request(tmp_path: Path) -> None:
    async def receive() -> dict[str, object]:
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", HEADERS["content-type"].encode())]}
    with pytest.raises(InvalidRequestError) as caught:
        async with parse_multipart(Request(scope, receive), directory=tmp_path, max_file_bytes=1):
            pass
    assert isinstance(caught.value.__cause__, ClientDisconnect)
