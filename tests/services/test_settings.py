import os
import pickle
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fastervlm_video.config import ImageLayout, MediaLimits, ModelOptions, PruneSpec
from fastervlm_video.errors import InvalidRequestError
from services.settings import STAGES, Settings, StageSettings, load_settings, settings_table


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("FASTERVLM_") or name == "REDIS_URL":
            monkeypatch.delenv(name)


def test_the_defaults_agree_with_the_library() -> None:
    settings = load_settings()
    assert settings.media_limits() == MediaLimits()
    assert settings.default_keep_ratio == PruneSpec().keep_ratio
    assert settings.model_options() == ModelOptions()
    assert settings.redis_url is None
    assert settings.url_policy().allowed_hosts == ()
    assert settings.blob_location() == f"file://{settings.runtime_dir}/blobs"


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MODEL": "/models/x",
        "MAX_NUM_FRAMES": "16",
        "MAX_DURATION_SECONDS": "60.5",
        "RUNTIME_DIR": "/run/fv",
        "VIDEO_URL_ALLOWED_HOSTS": "a.com, *.B.com:8443",
        "VIDEO_URL_ALLOWED_NETWORKS": '["10.0.0.0/8", "fd00::/8"]',
        "TENANT_SALT": "pepper",
        "UNKNOWN_SETTING": "ignored",
        "REVISION": "",
    }.items():
        monkeypatch.setenv(f"FASTERVLM_{name}", value)
    settings = load_settings()
    assert (settings.model, settings.media_limits().max_num_frames, settings.max_duration_seconds) == (
        "/models/x",
        16,
        60.5,
    )
    assert settings.blob_location() == "file:///run/fv/blobs"
    assert settings.video_url_allowed_networks == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    rule = settings.url_policy().allowed_hosts[1]
    assert (rule.host, rule.subdomains, rule.port) == ("b.com", True, 8443)
    assert settings.revision is None
    assert settings.tenant_salt.get_secret_value() == "pepper"
    assert "pepper" not in repr(settings)


def test_what_is_chosen_about_an_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTERVLM_IMAGE_LAYOUT", "reference")
    monkeypatch.setenv("FASTERVLM_FRAME_LABEL", "Frame {n}: ")
    assert load_settings().model_options() == ModelOptions(ImageLayout.REFERENCE, "Frame {n}: ")
    monkeypatch.setenv("FASTERVLM_IMAGE_LAYOUT", "rows")
    with pytest.raises(InvalidRequestError, match=r"FASTERVLM_IMAGE_LAYOUT.*'rows'"):
        load_settings()


def test_one_variable_of_a_stage_leaves_its_other_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    default = load_settings()
    monkeypatch.setenv("FASTERVLM_ENCODER__MAX_REPLICAS", "4")
    settings = load_settings()
    assert settings.encoder.max_replicas == 4
    assert settings.encoder.max_ongoing_requests == default.encoder.max_ongoing_requests
    assert settings.encoder.max_ongoing_requests != StageSettings().max_ongoing_requests
    assert settings.stage("encoder") is settings.encoder


@pytest.mark.parametrize(
    ("given", "most"),
    [
        ({}, 16),  # another batch waits while one runs
        ({"generator_max_batch_size": 32}, 64),
        ({"generator_max_queue": 3}, 11),  # what the engine would refuse is not sent to it
        ({"generator": StageSettings(max_ongoing_requests=5)}, 5),
        ({"generator": StageSettings(max_ongoing_requests=500)}, 72),
    ],
)
def test_a_generator_is_given_what_it_can_take(given: dict[str, Any], most: int) -> None:
    assert load_settings(**given).most_ongoing_requests("generator") == most


def test_a_stage_whose_settings_do_not_say_takes_sixteen() -> None:
    assert load_settings(encoder=StageSettings()).most_ongoing_requests("encoder") == 16
    assert load_settings().most_ongoing_requests("encoder") == 64


def test_custom_resources_of_a_stage_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTERVLM_ENCODER__RESOURCES", '{"encoder": 1, "fast-disk": 0.5}')
    settings = load_settings()
    assert settings.encoder.resources == {"encoder": 1.0, "fast-disk": 0.5}
    assert settings.encoder.max_ongoing_requests == 64
    assert settings.decoder.resources == {}


def test_redis_url_has_two_names_of_which_ours_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://common")
    assert load_settings().redis_url == "redis://common"
    monkeypatch.setenv("FASTERVLM_REDIS_URL", "redis://:pw@ours")
    settings = load_settings()
    assert settings.redis_url == "redis://:pw@ours"
    assert "pw" not in repr(settings)
    assert load_settings(redis_url="redis://given").redis_url == "redis://given"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MAX_NUM_FRAMES", "0", ["FASTERVLM_MAX_NUM_FRAMES", "greater than or equal to 1", "'0'"]),
        ("PORT", "abc", ["FASTERVLM_PORT", "integer", "'abc'"]),
        ("DTYPE", "int8", ["FASTERVLM_DTYPE", "bfloat16", "'int8'"]),
        ("ENCODER__MAX_REPLCAS", "3", ["FASTERVLM_ENCODER__MAX_REPLCAS", "not permitted"]),
        ("ENCODER__MIN_REPLICAS", "9", ["FASTERVLM_ENCODER", "min_replicas=9", "max_replicas=1"]),
        ("ENCODER", "many", ["encoder"]),
        ("ENCODER__RESOURCES", '{"GPU": 1}', ["FASTERVLM_ENCODER__RESOURCES", "'GPU'", "num_gpus"]),
        ("ENCODER__RESOURCES", '{"big": 1.5}', ["FASTERVLM_ENCODER__RESOURCES", "big", "1.5"]),
        ("ENCODER__RESOURCES", '{"big": 0}', ["FASTERVLM_ENCODER__RESOURCES", "big", "above 0"]),
        ("MIN_KEEP_RATIO", "0.5", ["min_keep_ratio=0.5", "default_keep_ratio=0.1"]),
        ("DEFAULT_NUM_FRAMES", "65", ["default_num_frames=65", "max_num_frames=64"]),
        ("DEFAULT_ANSWER_TOKENS", "5000", ["default_answer_tokens=5000", "max_answer_tokens"]),
        ("DECODE_TIMEOUT_SECONDS", "500", ["decode_timeout_seconds=500", "request_timeout_seconds"]),
        ("API_KEYS", "nonsense", ["FASTERVLM_API_KEYS", "key:tenant"]),
        ("MAX_INLINE_BYTES", "0", ["FASTERVLM_MAX_INLINE_BYTES"]),
        ("BLOB_QUOTA_BYTES", "1000", ["blob_quota_bytes=1000", "max_upload_bytes"]),
        ("VIDEO_URL_ALLOWED_HOSTS", "http://x/", ["FASTERVLM_VIDEO_URL_ALLOWED_HOSTS", "http://x/"]),
        ("VIDEO_URL_ALLOWED_HOSTS", "*", ["FASTERVLM_VIDEO_URL_ALLOWED_HOSTS", "'*'"]),
        ("VIDEO_URL_ALLOWED_NETWORKS", "10.0.0.1/8", ["FASTERVLM_VIDEO_URL_ALLOWED_NETWORKS", "host bits"]),
        ("VIDEO_URL_ALLOWED_NETWORKS", "[1", ["FASTERVLM_VIDEO_URL_ALLOWED_NETWORKS"]),
        ("MAX_DURATION_SECONDS", "nan", ["FASTERVLM_MAX_DURATION_SECONDS"]),
    ],
)
def test_bad_values_are_named_with_their_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: list[str]
) -> None:
    monkeypatch.setenv(f"FASTERVLM_{name}", value)
    with pytest.raises(InvalidRequestError) as caught:
        load_settings()
    for word in words:
        assert word in caught.value.message
    assert "\n" not in caught.value.message


def test_settings_are_frozen_and_survive_being_sent_to_another_process() -> None:
    settings = load_settings(video_url_allowed_networks=["10.0.0.0/8"], tenant_salt="s")
    assert pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(ValidationError):
        settings.port = 1
    with pytest.raises(ValidationError):
        settings.encoder.max_replicas = 1


def test_threads_follow_the_reserved_cores() -> None:
    half = max(1, len(os.sched_getaffinity(0)) // 2)
    assert StageSettings(num_cpus=0.5).threads() == half
    assert StageSettings(num_cpus=3.5).threads() == 3
    assert StageSettings(num_cpus=3.5, threads_per_replica=2).threads() == 2


def test_the_table_lists_every_variable_once_and_they_all_work(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = settings_table().splitlines()[2:]
    names = [re.findall(r"`(FASTERVLM_\w+)`", row)[0] for row in rows]
    fields = [name for name in Settings.model_fields if name not in STAGES]
    assert len(names) == len(set(names)) == len(fields) + len(STAGES) * len(StageSettings.model_fields)
    for row in rows:
        name, default, description = (cell.strip() for cell in row.strip("|").split(" | "))
        assert description.endswith((".", "off.")), row
        if default:
            monkeypatch.setenv(name.strip("` "), default.strip("`"))
    written_out, default_settings = load_settings(), Settings()
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert written_out == default_settings == load_settings()


def test_the_runtime_folder_is_private(tmp_path: Path) -> None:
    settings = load_settings(runtime_dir=tmp_path / "a" / "b")
    folder = settings.prepare_runtime_dir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert settings.prepare_runtime_dir() == folder
    folder.chmod(0o755)
    with pytest.raises(InvalidRequestError, match="RUNTIME_DIR"):
        settings.prepare_runtime_dir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(InvalidRequestError, match="must be a folder"):
        load_settings(runtime_dir=tmp_path / "link").prepare_runtime_dir()
