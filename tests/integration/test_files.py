"""Files, models, health and documentation pages."""

import hashlib

from tests.integration.conftest import Service


def test_a_file_is_stored_once_under_its_digest(service: Service) -> None:
    content = service.new_video()
    first = service.client.post("/v1/files", files={"file": ("a.mp4", content)}).json()
    again = service.client.post("/v1/files", files={"file": ("b.mp4", content)}).json()
    assert first["id"] == again["id"] == "file-" + hashlib.sha256(content).hexdigest()
    assert first["bytes"] == len(content)
    assert first["expires_at"] > first["created_at"]
    assert service.client.get(f"/v1/files/{first['id']}").json()["filename"] == "a.mp4"


def test_deleting_a_file_deletes_what_was_made_of_it(service: Service) -> None:
    content = service.new_video()
    file_id = service.upload(content)
    service.answer(file_id=file_id)
    assert service.answer(file_id=file_id)["video"]["cache"] == "hit"
    assert service.client.delete(f"/v1/files/{file_id}").json() == {"id": file_id, "object": "file", "deleted": True}
    assert service.client.get(f"/v1/files/{file_id}").status_code == 404
    assert service.ask(file_id=file_id).status_code == 404
    assert service.client.delete(f"/v1/files/{file_id}").json()["deleted"] is False
    assert service.answer(file_id=service.upload(content))["video"]["cache"] == "miss"


def test_an_upload_without_a_file(service: Service) -> None:
    response = service.client.post("/v1/files", data={"x": "y"}, files={"x2": b""})
    assert response.status_code == 400
    assert "file" in response.json()["error"]["message"]


def test_models_and_health(service: Service) -> None:
    (model,) = service.client.get("/v1/models").json()["data"]
    assert model["id"] == "fastervlm-video/mini"
    assert model["patches_per_frame"] == 64
    assert {"cls_attention", "random", "uniform_grid"} <= set(model["methods"])
    assert service.client.get("/healthz").json() == {"status": "ok"}
    ready = service.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["stages"] == dict.fromkeys(("Decoder", "Encoder", "Generator"), "running")


def test_documentation_pages(service: Service) -> None:
    assert service.client.get("/docs").status_code == 200
    schema = service.client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/v1/ask",
        "/v1/chat/completions",
        "/v1/files",
        "/v1/files/{id}",
        "/v1/models",
        "/v1/models/{id}",
        "/healthz",
        "/readyz",
    }
    body = schema["paths"]["/v1/ask"]["post"]["requestBody"]["content"]
    assert body["application/json"]["examples"]
    assert "file" in body["multipart/form-data"]["schema"]["properties"]


def test_unknown_routes_have_the_same_error_shape(service: Service) -> None:
    for response, status in ((service.client.get("/nope"), 404), (service.client.get("/v1/ask"), 405)):
        assert response.status_code == status
        assert response.json()["error"]["message"]


def test_a_clients_request_id_comes_back(service: Service) -> None:
    response = service.client.get("/healthz", headers={"x-request-id": "my-id-1"})
    assert response.headers["x-request-id"] == "my-id-1"
