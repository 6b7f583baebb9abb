"""The judge against a real HTTP server on this machine, which does what servers do: answer, stall, fail, babble."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fastervlm_video.errors import InvalidInputError, UnavailableError
from fastervlm_video.eval import Judge, Judgement, Prediction, judge_predictions, parse_judgement

Reply = tuple[int, str]


def said(text: str) -> Reply:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


YES, NO = said('{"pred": "yes", "score": 5}'), said('{"pred": "no", "score": 1}')


class Server:
    """Answers with what ``reply`` makes of the request's body; remembers requests."""

    def __init__(self, reply: Callable[[dict[str, Any]], Reply]) -> None:
        self.reply = reply
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append((self.path, dict(self.headers), body))
                status, text = server.reply(body)
                content = text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *args: object) -> None:
                """Clients that have gone away are part of the tests."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(lambda body: YES)
    yield server
    server.close()


def judge_at(server: Server, **options: Any) -> Judge:
    return Judge(server.url, "referee", **{"pause_seconds": 0.01, **options})


def replies(*each: Reply) -> Callable[[dict[str, Any]], Reply]:
    """One after the other; the last one again and again."""
    left = list(each)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


def prediction(pred: str, identity: str = "1", **changes: Any) -> Prediction:
    values: dict[str, Any] = {
        "id": identity, "video": "v", "question": "what?", "answer": "red", "pred": pred, "type": "t", "choices": None,
        "method": "full", "keep": 1.0, "seed": 0, "tokens": 1, "mean_tokens": 1.0, "encode_seconds": 0.0,
        "prune_seconds": 0.0, "generate_seconds": 0.0,
    }  # fmt: skip
    return Prediction(**{**values, **changes})


@pytest.mark.parametrize(
    ("reply", "judgement"),
    [
        ('{"pred": "yes", "score": 4}', Judgement(True, 4)),
        ("{'pred': 'no', 'score': 0}", Judgement(False, 0)),
        ('Sure! ```json\n{"pred": "Yes", "score": "4.5"}\n```', Judgement(True, 4.5)),
        ('{"thought": "hm"} {"pred": "no", "score": 2}', Judgement(False, 2)),
        ('{"pred": "yes", "score": 6}', None),
        ('{"pred": "yes", "score": -1}', None),
        ('{"pred": "yes", "score": NaN}', None),
        ('{"pred": "maybe", "score": 3}', None),
        ('{"pred": "yes"}', None),
        ('{"pred": "yes", "score": null}', None),
        ("yes, 5", None),
        ("{pred: yes}", None),
        ("", None),
    ],
)
def test_replies(reply: str, judgement: Judgement | None) -> None:
    assert parse_judgement(reply) == judgement


def test_what_is_sent(server: Server) -> None:
    with judge_at(server, api_key="secret") as judge:
        assert judge.judge("What moves?", "a dog", "the puppy") == Judgement(True, 5)
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"]) == ("referee", 0)
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert all(words in user["content"] for words in ("What moves?", "a dog", "the puppy"))
    with judge_at(server) as judge:
        judge.judge("q", "a", "p")
    assert "Authorization" not in server.requests[1][1]


@pytest.mark.parametrize(
    "trouble", [(500, "oops"), (429, "slow down"), said("I would rather not say"), (200, "<html>")]
)
def test_trouble_that_passes_is_waited_out(server: Server, trouble: Reply) -> None:
    server.reply = replies(trouble, trouble, NO)
    with judge_at(server) as judge:
        assert judge.judge("q", "a", "p") == Judgement(False, 1)
    assert len(server.requests) == 3


def test_a_judge_that_never_makes_sense_is_no_opinion(server: Server) -> None:
    server.reply = replies(said("hm"))
    with judge_at(server, attempts=3) as judge:
        assert judge.judge("q", "a", "p") is None
    assert len(server.requests) == 3


def test_it_is_tried_with_a_question_that_needs_no_video(server: Server) -> None:
    with judge_at(server, attempts=2) as judge:
        judge.check()
        assert "sky" in server.requests[0][2]["messages"][1]["content"]
        server.reply = replies(said("hm"))
        with pytest.raises(InvalidInputError, match=r"'referee' at .* does not reply as it is told to"):
            judge.check()


def test_a_server_that_stays_down_ends_the_run(server: Server) -> None:
    server.reply = replies((503, "down for the day"))
    with (
        judge_at(server, attempts=2) as judge,
        pytest.raises(UnavailableError, match=r"failed 2 times.*down for the day"),
    ):
        judge.judge("q", "a", "p")
    nobody = Judge("http://127.0.0.1:9/v1", "x", attempts=2, pause_seconds=0.01)
    with nobody, pytest.raises(UnavailableError, match="ConnectError"):
        nobody.judge("q", "a", "p")


def test_a_server_that_stalls_is_given_up(server: Server) -> None:
    released = threading.Event()
    server.reply = lambda body: (released.wait(20), YES)[1]
    with (
        judge_at(server, timeout_seconds=0.2, attempts=2) as judge,
        pytest.raises(UnavailableError, match="ReadTimeout"),
    ):
        judge.judge("q", "a", "p")
    released.set()


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_repeated(server: Server, status: int) -> None:
    server.reply = replies((status, "no such model"))
    with judge_at(server) as judge, pytest.raises(InvalidInputError, match=f"{status} no such model"):
        judge.judge("q", "a", "p")
    assert len(server.requests) == 1


def test_a_url_that_is_none() -> None:
    with pytest.raises(InvalidInputError, match="'localhost:80'"):
        Judge("localhost:80", "x")


def by_prediction(body: dict[str, Any]) -> Reply:
    text = body["messages"][1]["content"]
    return said("no comment") if "strange" in text else YES if "crimson" in text else NO


def test_each_different_prediction_is_asked_about_once_and_kept(server: Server, tmp_path: Path) -> None:
    server.reply = by_prediction
    predictions = [
        prediction("crimson"),
        prediction("crimson", seed=1),
        prediction("blue", method="random"),
        prediction("strange"),
        prediction("A", choices=("x", "y")),
        prediction("", error="too long"),
    ]
    with judge_at(server, attempts=1) as judge:
        scores = judge_predictions(judge, predictions, tmp_path)
        assert {key[2]: (score.value, score.grade) for key, score in scores.items()} == {
            "crimson": (1, 5),
            "blue": (0, 1),
            "strange": (None, None),
        }
        assert len(server.requests) == 3
        assert judge_predictions(judge, predictions, tmp_path) == scores
        assert len(server.requests) == 4  # only the one without an opinion is asked again
    with Judge(server.url, "another", attempts=1) as other:
        judge_predictions(other, predictions, tmp_path)
        assert len(server.requests) == 7


def test_opinions_survive_what_ends_the_run(server: Server, tmp_path: Path) -> None:
    server.reply = lambda body: (401, "key expired") if "two" in body["messages"][1]["content"] else YES
    predictions = [prediction("one"), prediction("two")]
    with judge_at(server) as judge:
        with pytest.raises(InvalidInputError, match="key expired"):
            judge_predictions(judge, predictions, tmp_path, workers=1)
        path = tmp_path / "judgements.jsonl"
        assert len(path.read_text().splitlines()) == 1
        path.write_text(path.read_text() + '{"model": "referee", "ke')  # cut short
        server.reply = replies(NO)
        scores = judge_predictions(judge, predictions, tmp_path)
        assert {key[2]: score.value for key, score in scores.items()} == {"one": 1, "two": 0}
        assert len([json.loads(line) for line in path.read_text().splitlines()]) == 2
        path.write_text("nonsense\n" + path.read_text())
        with pytest.raises(InvalidInputError, match="line 1, is damaged"):
            judge_predictions(judge, predictions, tmp_path)
