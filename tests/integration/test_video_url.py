"""Videos that the service fetches itself, from a real HTTP server on an address it may reach."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.integration.conftest import Service


@pytest.fixture
def host(service: Service) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A server on the allowed host, and what it serves by path; a path that is not there redirects elsewhere."""
    content: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = content.get(self.path, b"")
            self.send_response(200 if body else 302)
            if not body:
                self.send_header("location", "http://169.254.169.254/latest/meta-data")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code: object = "-", size: object = "-") -> None:
            """Keep quiet."""

    name, port = service.video_host.split(":")
    with ThreadingHTTPServer((name, int(port)), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://{service.video_host}", content
        server.shutdown()
        thread.join()


def test_a_fetched_video_is_the_same_as_an_uploaded_one(service: Service, host: tuple[str, dict[str, bytes]]) -> None:
    url, content = host
    content["/clip.mp4"] = service.new_video()
    fetched = service.answer(video_url=f"{url}/clip.mp4")
    assert fetched["video"]["cache"] == "miss"
    uploaded = service.answer(file_id=service.upload(content["/clip.mp4"]))
    assert uploaded["video"]["cache"] == "hit"
    assert uploaded["video"]["file_id"] == fetched["video"]["file_id"]
    assert uploaded["answer"] == fetched["answer"]


def test_redirects_are_checked_too(service: Service, host: tuple[str, dict[str, bytes]]) -> None:
    response = service.ask(video_url=f"{host[0]}/elsewhere")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "url_not_allowed"
    assert "169.254" not in response.text
