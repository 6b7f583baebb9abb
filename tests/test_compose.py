"""What docker-compose.yml says, as far as that can be known without starting anything."""

import json
import re
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from services.settings import STAGES, Settings, load_settings
from tests.compose import COMPOSE_FILE, ROOT, compose, env_file


def services() -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"]
    return found


def test_it_is_a_compose_file() -> None:
    found = compose()
    parsed = PyCompose.from_json(json.dumps(found))
    assert set(parsed.service_names()) == {"redis", "service", "service-gpu", "prometheus", "grafana", "load"}
    found["services"]["redis"]["user"] = ["redis"]
    with pytest.raises(ValueError, match="invalid type"):
        PyCompose.from_json(json.dumps(found))


def test_what_has_to_be_set_is_set_in_the_example() -> None:
    named = set(re.findall(r"\$\{(\w+):\?", COMPOSE_FILE.read_text()))
    assert named == {"REDIS_PASSWORD", "GRAFANA_ADMIN_PASSWORD"}
    assert all(env_file()[name] for name in named)
    with pytest.raises(KeyError, match="PASSWORD"):
        compose({})


def test_every_variable_of_the_example_is_used() -> None:
    used = set(re.findall(r"\$\{(\w+)", COMPOSE_FILE.read_text()))
    assert env_file().keys() <= used


def test_its_settings_are_settings() -> None:
    given = services()["service"]["environment"]
    known = {f"FASTERVLM_{name.upper()}" for name in Settings.model_fields if name not in STAGES}
    assert given.keys() <= known
    values = {name.removeprefix("FASTERVLM_").lower(): value for name, value in given.items() if value}
    assert load_settings(**values).metrics_port == 8080


def test_settings_without_a_line_of_their_own_go_into_a_file_that_need_not_be_there() -> None:
    for name in ("service", "service-gpu"):
        assert services()[name]["env_file"] == [{"path": "service.env", "required": False}]


def test_a_password_is_in_no_file_but_the_users() -> None:
    text = COMPOSE_FILE.read_text()
    assert "change-me" not in text
    assert {".env", "service.env"} <= set((ROOT / ".gitignore").read_text().splitlines())


def test_what_starts_after_what() -> None:
    found = services()
    for name in ("service", "service-gpu"):
        assert found[name]["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert found["grafana"]["depends_on"] == {"prometheus": {"condition": "service_healthy"}}
    waits_for = found["load"]["depends_on"]
    assert {name: one["condition"] for name, one in waits_for.items()} == {
        "service": "service_healthy",
        "service-gpu": "service_healthy",
    }
    assert not any(one["required"] for one in waits_for.values())  # only one of them is there
    assert all("healthcheck" in one for name, one in found.items() if name != "load")


def test_only_one_of_the_services_is_started() -> None:
    found = services()
    profiles = {name: one.get("profiles") for name, one in found.items() if one.get("profiles")}
    assert profiles == {"service": ["cpu"], "service-gpu": ["gpu"], "load": ["load"]}
    assert env_file()["COMPOSE_PROFILES"] in {"cpu", "gpu"}
    (device,) = found["service-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert found["service-gpu"]["networks"]["default"]["aliases"] == ["service"]


def test_each_profile_has_an_image_of_its_own() -> None:
    for profile, name in (("cpu", "service"), ("gpu", "service-gpu")):
        chosen = {**env_file(), "COMPOSE_PROFILES": profile, "TORCH_INDEX": "cpu", "TORCH_INDEX_GPU": "gpu"}
        found = compose(chosen)["services"]
        assert found[name]["image"] == f"fastervlm-video:{profile}"
        assert found[name]["build"]["args"] == {"TORCH_INDEX": profile}
        assert found["load"]["build"]["args"] == {"SERVICE_IMAGE": found[name]["image"]}


def test_the_load_test_runs_the_locked_locust() -> None:
    locked = re.search(r"^locust==(\S+)", (ROOT / "requirements-dev.lock").read_text(), re.MULTILINE)
    installed = re.search(r'"locust==([^"]+)"', (ROOT / "ops" / "load" / "Dockerfile").read_text())
    assert locked is not None
    assert installed is not None
    assert installed[1] == locked[1]


def test_prometheus_has_the_rules_that_its_configuration_names() -> None:
    places = [volume.split(":")[1] for volume in services()["prometheus"]["volumes"]]
    named = yaml.safe_load((ROOT / "ops" / "prometheus.yml").read_text())["rule_files"]
    assert named
    assert {f"/etc/prometheus/{name}" for name in [*named, "prometheus.yml"]} <= set(places)


def test_containers_may_do_little() -> None:
    for name, one in services().items():
        assert one["cap_drop"] == ["ALL"], name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert name == "load" or one["read_only"], name
        assert "privileged" not in one
        for port in one.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} listens on {port}"
    assert "ports" not in services()["redis"]


def test_what_is_mounted_is_there() -> None:
    volumes = compose()["volumes"]
    for one in services().values():
        for volume in one.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists() or source == env_file()["MODELS_DIR"], source
            else:
                assert source in volumes
    assert (ROOT / services()["load"]["build"]["context"] / "Dockerfile").is_file()
