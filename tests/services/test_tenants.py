import hashlib
import pickle
from pathlib import Path

import pytest

from fastervlm_video.errors import AuthenticationError, InvalidRequestError
from services.settings import load_settings
from services.tenants import ANONYMOUS, ApiKey, Keyring, Tenant, parse_api_keys, read_api_keys

ONE, TWO = "first-key-of-acme:x", "second-key/of+acme=="
BETA = "the-key-of-beta-0001"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def ring(*items: str, salt: bytes = b"") -> Keyring:
    return Keyring(parse_api_keys(items), salt)


def test_keys_are_known_by_their_digest_only() -> None:
    key = ApiKey.parse(f" {ONE}:acme ")
    assert key == ApiKey(digest(ONE), "acme") == ApiKey.parse(f"sha256:{digest(ONE)}:acme")
    settings = load_settings(api_keys=f"{ONE}:acme,{BETA}:beta")
    for text in (repr(settings), str(settings.api_keys), str(pickle.dumps(settings)), str(vars(settings.keyring()))):
        assert ONE not in text
        assert BETA not in text
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_each_key_has_its_tenant() -> None:
    keys = ring(f"{ONE}:acme", f"{TWO}:acme", f"{BETA}:beta")
    assert keys.tenant(ONE) == keys.tenant(TWO) == Tenant.of("acme", b"")
    assert keys.tenant(BETA).name == "beta"


@pytest.mark.parametrize("key", [None, "", "x", ONE.upper(), ONE + "x", digest(ONE), f"{ONE}:acme", "é" * 20, "\udcff"])
def test_no_other_key_opens(key: str | None) -> None:
    with pytest.raises(AuthenticationError) as caught:
        ring(f"{ONE}:acme").tenant(key)
    assert not key or key not in caught.value.message or len(key) < 3


@pytest.mark.parametrize("key", [None, "", "anything"])
def test_without_keys_everybody_is_the_anonymous_tenant(key: str | None) -> None:
    assert ring(salt=b"pepper").tenant(key) == Tenant(ANONYMOUS, b"pepper")


def test_every_tenant_has_a_salt_of_its_own_on_every_service() -> None:
    salts = {
        ring(f"{ONE}:acme", f"{BETA}:beta", salt=salt).tenant(key).salt for salt in (b"", b"s") for key in (ONE, BETA)
    }
    assert len(salts | {b"", b"s"}) == 6
    assert "acme" in repr(Tenant.of("acme", b"secret"))
    assert "secret" not in repr(Tenant("", b"secret"))
    settings = load_settings(api_keys=f"{ONE}:acme", tenant_salt="s")
    assert settings.keyring().tenant(ONE) == settings.tenant("acme") == Tenant.of("acme", b"s")


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (ONE.replace(":", ""), "key:tenant"),
        (f"{ONE}:Acme", "a-z"),
        (f"{ONE}:../etc", "key:tenant"),
        (f"{ONE}:.hidden", "key:tenant"),
        (f"{ONE}:{'x' * 65}", "64 characters"),
        (f"{ONE}:", "key:tenant"),
        ("short:acme", "16 to 512"),
        (f"has a blank {ONE}:acme", "no blanks"),
        (f"ümlaut-{ONE}:acme", "ASCII"),
        ("sha256:0123:acme", "64 hexadecimal"),
        (f"sha256:{digest(ONE).upper()}:acme", "64 hexadecimal"),
    ],
)
def test_what_is_no_key_is_refused_and_not_repeated(item: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        ApiKey.parse(item)
    monkeypatch.setenv("FASTERVLM_API_KEYS", item)
    with pytest.raises(InvalidRequestError, match="FASTERVLM_API_KEYS") as caught:
        load_settings()
    assert item not in caught.value.message
    assert item not in str(caught.value.__cause__)


def test_a_key_of_two_tenants_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="more than one tenant"):
        parse_api_keys([f"{ONE}:acme", f"sha256:{digest(ONE)}:beta"])
    assert len(parse_api_keys([f"{ONE}:acme", f"sha256:{digest(ONE)}:acme"])) == 1
    (tmp_path / "keys").write_text(f"{ONE}:beta\n")
    with pytest.raises(InvalidRequestError, match="more than one tenant"):
        load_settings(api_keys=f"{ONE}:acme", api_keys_file=tmp_path / "keys").keyring()


def test_keys_from_a_file_come_besides_those_of_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of beta\n\n  {BETA}:beta  \nsha256:{digest(TWO)}:acme\n")
    assert read_api_keys(path) == (ApiKey(digest(BETA), "beta"), ApiKey(digest(TWO), "acme"))
    keys = load_settings(api_keys=f"{ONE}:acme", api_keys_file=path).keyring()
    assert [keys.tenant(key).name for key in (ONE, TWO, BETA)] == ["acme", "acme", "beta"]


def test_a_key_is_taken_away_and_another_given_by_changing_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.tenants._LOOK_EVERY_SECONDS", 0.0)
    path = tmp_path / "keys"
    path.write_text(f"{ONE}:acme\n")
    keys = load_settings(api_keys_file=path).keyring()
    assert keys.tenant(ONE).name == "acme"
    fresh = tmp_path / "fresh"  # as a mounted Secret changes: another file behind a link
    fresh.write_text(f"{TWO}:acme\n")
    path.unlink()
    path.symlink_to(fresh)
    assert keys.tenant(TWO).name == "acme"
    with pytest.raises(AuthenticationError):
        keys.tenant(ONE)


@pytest.mark.parametrize("content", [None, "", "short:acme"])
def test_a_file_that_becomes_useless_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    monkeypatch.setattr("services.tenants._LOOK_EVERY_SECONDS", 0.0)
    path = tmp_path / "keys"
    path.write_text(f"{ONE}:acme\n")
    keys = load_settings(api_keys_file=path).keyring()
    path.unlink()
    if content is not None:
        path.write_text(content)
    for _ in range(2):
        assert keys.tenant(ONE).name == "acme"
    assert sum("stay as they were" in record.message for record in caplog.records) == 1
    path.write_text(f"{TWO}:acme\n")
    assert keys.tenant(TWO).name == "acme"


@pytest.mark.parametrize("content", [None, b"", b"# nothing\n", b"\xff\xfe", b"short:acme"])
def test_a_file_that_cannot_be_used_does_not_open_the_service(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequestError):
        load_settings(api_keys_file=path).keyring()


@pytest.mark.parametrize("value", [" ", ",", "[]"])
def test_a_list_of_keys_without_a_key_does_not_open_the_service(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FASTERVLM_API_KEYS", value)
    with pytest.raises(InvalidRequestError, match="FASTERVLM_API_KEYS: holds no key"):
        load_settings()
