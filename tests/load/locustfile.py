"""What Locust runs; ``python -m tests.load`` starts it. Chosen by environment variables:

================ ========= ==========================================================================================
``LOAD_SECONDS`` 120       how long the test takes
``LOAD_USERS``   8         users at its height
``LOAD_SHAPE``   (none)    ``ramp``, ``spike`` or ``soak``; without one as many users all the time
``LOAD_MIX``     typical   ``typical``, ``warm``, ``cold`` or ``hostile``, or weights: ``warm=8,stream=2``
``LOAD_OUT``     (none)    folder for ``summary.json``
``LOAD_API_KEY`` (none)    sent with every request
================ ========= ==========================================================================================
"""

import os
import time
from pathlib import Path
from typing import Any, cast

import gevent
import requests
from locust import LoadTestShape, events

from tests.load.media import Media
from tests.load.mixes import weights
from tests.load.results import Results, as_text, write
from tests.load.shapes import SHAPES, Plan
from tests.load.users import USERS, AbusiveUser, ChatUser, ColdUser, StreamUser, UploadUser, WarmUser, World

__all__ = ["AbusiveUser", "ChatUser", "ColdUser", "StreamUser", "UploadUser", "WarmUser"]

_PLAN = Plan(float(os.environ.get("LOAD_SECONDS", "120")), int(os.environ.get("LOAD_USERS", "8")))
_SHAPE = os.environ.get("LOAD_SHAPE", "")
_SETUP_TIMEOUT_SECONDS = 60.0
_RESULTS = Results()
_MEDIA = Media()
gevent.sleep(0)  # its clock stands still while something else works, and timers would go off at once
_begin = [time.perf_counter()]

for _name, _weight in weights(os.environ.get("LOAD_MIX", "typical"), USERS).items():
    USERS[_name].weight = _weight

if _SHAPE:
    _users_at = SHAPES[_SHAPE]

    class ChosenShape(LoadTestShape):
        """The shape that was asked for."""

        def tick(self) -> tuple[int, float] | None:
            """Users now, and how many of them may come per second; None at the end."""
            now: float = cast("Any", self).get_run_time()
            return None if now >= _PLAN.seconds else (_users_at(_PLAN, now), float(_PLAN.users))


def _prepare(environment: Any, **_: object) -> None:
    """Upload what is asked about again and again, and have it encoded once."""
    url = environment.host.rstrip("/")
    key = os.environ.get("LOAD_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with requests.Session() as session:
        session.headers.update(headers)
        known = {}
        files = {"video_url": _MEDIA.videos, "image_url": _MEDIA.pictures}
        for kind, content in ((kind, content) for kind, contents in files.items() for content in contents):
            response = session.post(f"{url}/v1/files", files={"file": content}, timeout=_SETUP_TIMEOUT_SECONDS)
            response.raise_for_status()
            file_id = response.json()["id"]
            known[file_id] = kind
            body = {"file_id": file_id, "question": "What is it?", "max_tokens": 1}
            session.post(f"{url}/v1/ask", json=body, timeout=_SETUP_TIMEOUT_SECONDS).raise_for_status()
        model = session.get(f"{url}/v1/models", timeout=_SETUP_TIMEOUT_SECONDS).json()["data"][0]["id"]
    world = World(_MEDIA, _RESULTS, known, model, headers)
    for user in USERS.values():
        user.world = world


def _start(environment: Any, **_: object) -> None:
    _begin[0] = time.perf_counter()


def _finish(environment: Any, **_: object) -> None:
    summary = _RESULTS.summary(time.perf_counter() - _begin[0])
    print(as_text(summary), flush=True)  # noqa: T201 - what the command is for
    if folder := os.environ.get("LOAD_OUT"):
        write(summary, Path(folder) / "summary.json")
    environment.process_exit_code = 0 if summary["passed"] else 1


cast("Any", events.init).add_listener(_prepare)  # before the test's time begins
cast("Any", events.test_start).add_listener(_start)
cast("Any", events.test_stop).add_listener(_finish)
