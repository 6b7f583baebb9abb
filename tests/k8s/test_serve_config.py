"""``serveConfigV2`` and the settings beside it are what Ray Serve and the service take."""

import re

import pytest
from ray.serve.schema import ServeDeploySchema

from services.proxy import PROXY_CALLBACK
from services.settings import STAGES, settings_table
from tests.k8s.build import Choice, Manifests, Object
from tests.k8s.deployments import deployments_of
from tests.k8s.pods import quantity
from tests.k8s.test_ends import DRAIN_TIMEOUT

KNOWN = {"HOME", "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "RAY_USAGE_STATS_ENABLED", "OMP_NUM_THREADS"}
KNOWN |= {"HF_HUB_OFFLINE", "AWS_EC2_METADATA_DISABLED"}


def test_serve_accepts_it(manifests: Manifests) -> None:
    config = manifests.serve_config
    accepted = ServeDeploySchema.model_validate(config)
    (application,) = accepted.applications
    assert (application.import_path, application.route_prefix) == ("services.app:build_app", "/")
    assert accepted.proxy_location == "EveryNode"


def test_nothing_in_it_is_unknown_to_serve(manifests: Manifests) -> None:
    """Serve ignores what it does not know."""
    config = manifests.serve_config
    accepted = ServeDeploySchema.model_validate(config)
    assert config.keys() <= ServeDeploySchema.model_fields.keys()
    for part, given in (
        (accepted.http_options, config["http_options"]),
        (accepted.logging_config, config["logging_config"]),
        (accepted.applications[0], config["applications"][0]),
    ):
        assert part is not None
        assert given.keys() <= type(part).model_fields.keys()


def test_the_service_accepts_its_arguments(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = manifests.settings(monkeypatch)
    (application,) = manifests.serve_config["applications"]
    assert application["args"].keys() == set(STAGES)
    for name in STAGES:
        for field, value in application["args"][name].items():
            assert getattr(settings.stage(name), field) == value
    assert settings.encoder.max_ongoing_requests == 64, "what is not given keeps its default"
    assert settings.blob_location() == manifests.variables["FASTERVLM_BLOB_URL"]
    assert str(settings.runtime_dir) == manifests.variables["FASTERVLM_RUNTIME_DIR"]


def test_variables_are_known(manifests: Manifests) -> None:
    """A misspelt one would do nothing, in silence."""
    ours = set(re.findall(r"`(FASTERVLM_\w+)`", settings_table()))
    given = set(manifests.variables)
    for group in [manifests.cluster["headGroupSpec"], *manifests.groups]:
        given |= {variable["name"] for variable in group["template"]["spec"]["containers"][0]["env"]}
    assert given - KNOWN - {"TOKEN_CACHE_PASSWORD", DRAIN_TIMEOUT} <= ours


def test_the_proxies_know_the_upload_limits(manifests: Manifests) -> None:
    assert manifests.variables["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == PROXY_CALLBACK


def without_draining(variables: list[Object]) -> list[Object]:
    """All but how long a container may take to end, in which head and workers differ."""
    return [variable for variable in variables if variable["name"] != DRAIN_TIMEOUT]


def test_every_stage_logs_objects(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has what its own settings say; ``logging_config`` is for what of Serve belongs to no stage."""
    assert manifests.serve_config["logging_config"]["encoding"] == "JSON"
    for stage in deployments_of(manifests.settings(monkeypatch)).values():
        assert stage._deployment_config.logging_config["encoding"] == "JSON"


def test_all_ray_containers_have_the_same_settings(manifests: Manifests, choice: Choice) -> None:
    """The proxies read them where they run, and the application's builder where Serve happens to run it."""
    head = manifests.cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    for group in manifests.groups:
        worker = group["template"]["spec"]["containers"][0]
        assert without_draining(worker["env"]) == without_draining(head["env"])
        assert worker["envFrom"][: len(head["envFrom"])] == head["envFrom"]
        more = worker["envFrom"][len(head["envFrom"]) :]
        assert more == [] or ("s3-blobs" in choice.components and len(more) == 1)


def test_the_front_door_lets_uploads_through(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = manifests.settings(monkeypatch)
    for ingress in manifests.all("Ingress"):
        size = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"]
        assert int(size.removesuffix("m")) * 1024**2 > settings.max_upload_bytes


def test_uploads_fit_where_they_are_kept(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = manifests.settings(monkeypatch)
    claims = [claim for claim in manifests.all("PersistentVolumeClaim") if "blobs" in claim["metadata"]["name"]]
    assert len(claims) == settings.blob_location().startswith("file:")
    for claim in claims:
        assert settings.blob_quota_bytes < quantity(claim["spec"]["resources"]["requests"]["storage"])
    assert claims or "FASTERVLM_BLOB_QUOTA_BYTES" in manifests.variables, "nothing else bounds a bucket"
