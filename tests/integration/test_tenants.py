"""A service with API keys, on the same Redis and blob store as the one without: nobody sees anything of others."""

import base64
import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from ray import serve

from services.app import build_app
from services.settings import load_settings
from tests.integration.conftest import TIMEOUT_SECONDS, Service
from tests.integration.test_openai import complete, extra

NAME, PREFIX = "guarded", "/guarded"
ACME, BETA = "acme-key-0123456789", "beta-key-0123456789"
PUBLIC = ("/healthz", "/readyz", "/docs", "/openapi.json")


@dataclass
class Guarded:
    """Clients of two tenants, and of the service without keys beside it."""

    url: str
    acme: OpenAI
    beta: OpenAI
    anonymous: OpenAI


@pytest.fixture(scope="module")
def guarded(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    path = tmp_path_factory.mktemp("secret") / "keys"
    path.write_text(f"sha256:{hashlib.sha256(BETA.encode()).hexdigest()}:beta\n")
    settings = load_settings(
        runtime_dir=service.settings.runtime_dir, api_keys=f"{ACME}:acme", api_keys_file=path, api={"num_cpus": 0.1}
    )
    serve.run(build_app(settings), name=NAME, route_prefix=PREFIX)
    url = service.url + PREFIX
    with contextlib.ExitStack() as stack:
        stack.callback(serve.delete, NAME)
        clients = [
            stack.enter_context(OpenAI(base_url=f"{base}/v1", api_key=key, timeout=TIMEOUT_SECONDS, max_retries=0))
            for base, key in ((url, ACME), (url, BETA), (service.url, "none"))
        ]
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while httpx.get(f"{url}/readyz", timeout=TIMEOUT_SECONDS).status_code != 200:
            assert time.monotonic() < deadline, serve.status()
            time.sleep(0.2)
        yield Guarded(url, *clients)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong-key-0123456789", f"Basic {ACME}", ACME])
def test_without_a_key_nothing_is_answered(guarded: Guarded, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    some_id = "file-" + "0" * 64
    with httpx.Client(base_url=guarded.url, headers=headers, timeout=TIMEOUT_SECONDS) as nobody:
        answers = [
            nobody.get("/v1/models"),
            nobody.get("/v1/models/fastervlm-video/mini"),
            nobody.get("/v1/files"),
            nobody.get("/v1/files?limit=0"),
            nobody.get(f"/v1/files/{some_id}"),
            nobody.delete(f"/v1/files/{some_id}"),
            nobody.post("/v1/files", files={"file": ("a.mp4", b"x")}),
            nobody.post("/v1/ask", json={"question": "What?", "file_id": some_id}),
            nobody.post("/v1/ask", content=b"{nonsense", headers={"content-type": "application/json"}),
            nobody.post("/v1/chat/completions", json={"model": "x", "messages": []}),
        ]
        assert [answer.status_code for answer in answers] == [401] * len(answers)
        for answer in answers:
            error = answer.json()["error"]
            assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert ACME not in answer.text
        assert [nobody.get(path).status_code for path in PUBLIC] == [200] * len(PUBLIC)


def test_a_wrong_key_is_an_authentication_error_to_the_client(guarded: Guarded) -> None:
    with OpenAI(base_url=f"{guarded.url}/v1", api_key="none", max_retries=0) as nobody:
        with pytest.raises(openai.AuthenticationError) as caught:
            nobody.models.list()
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            nobody.chat.completions.create(model="x", messages=[], stream=True)


def test_each_key_opens(guarded: Guarded) -> None:
    for client in (guarded.acme, guarded.beta):
        assert [model.id for model in client.models.list()] == ["fastervlm-video/mini"]


def test_one_tenants_file_is_no_file_to_another(guarded: Guarded, service: Service) -> None:
    content = service.new_video()
    file_id = guarded.acme.files.create(file=("a.mp4", content), purpose="user_data").id
    assert extra(complete(guarded.acme, file_id), "video")["cache"] == "miss"
    assert file_id == "file-" + hashlib.sha256(content).hexdigest()  # anybody with the same video knows the id
    unknown = "file-" + "0" * 64
    for other in (guarded.beta, guarded.anonymous):
        with pytest.raises(openai.NotFoundError) as hidden:
            other.files.retrieve(file_id)
        with pytest.raises(openai.NotFoundError) as absent:
            other.files.retrieve(unknown)
        assert hidden.value.message.replace(file_id, "") == absent.value.message.replace(unknown, "")
        with pytest.raises(openai.NotFoundError):
            complete(other, file_id)
        with pytest.raises(openai.NotFoundError):
            other.post("/ask", body={"question": "What?", "file_id": file_id}, cast_to=object)
        assert file_id not in {file.id for file in other.files.list()}
        assert not other.files.delete(file_id).deleted
    assert guarded.acme.files.retrieve(file_id).id == file_id
    assert extra(complete(guarded.acme, file_id), "video")["cache"] == "hit"
    assert [file.id for file in guarded.acme.files.list()].count(file_id) == 1


def test_the_same_video_is_encoded_and_computed_anew_for_every_tenant(guarded: Guarded, service: Service) -> None:
    content = service.new_video()
    inline = f"data:video/mp4;base64,{base64.b64encode(content).decode()}"
    seen: list[Any] = []
    for client in (guarded.acme, guarded.beta, guarded.anonymous):
        first = complete(client, inline)
        assert extra(first, "video")["cache"] == "miss"
        assert first.usage is not None
        assert first.usage.prompt_tokens_details is not None
        assert first.usage.prompt_tokens_details.cached_tokens == 0  # not even the language model's work is shared
        seen.append((extra(first, "video")["file_id"], first.choices[0].message.content))
    assert seen[0] == seen[1] == seen[2]


def test_deleting_ones_own_copy_leaves_that_of_others(guarded: Guarded, service: Service) -> None:
    content = service.new_video()
    ids = {client.files.create(file=("a", content), purpose="user_data").id for client in (guarded.acme, guarded.beta)}
    (file_id,) = ids
    for client in (guarded.acme, guarded.beta):
        complete(client, file_id)
    assert guarded.acme.files.delete(file_id).deleted
    assert extra(complete(guarded.beta, file_id), "video")["cache"] == "hit"
    with pytest.raises(openai.NotFoundError):
        complete(guarded.acme, file_id)


def test_the_documentation_tells_of_keys(guarded: Guarded) -> None:
    schema = httpx.get(f"{guarded.url}/openapi.json", timeout=TIMEOUT_SECONDS).json()
    for path, item in schema["paths"].items():
        for operation in item.values():
            assert ("security" in operation) == path.startswith("/v1/"), path
    assert "HTTPValidationError" not in str(schema)
