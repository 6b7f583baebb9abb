import ipaddress

import httpx
import pytest

from fastervlm_video.errors import InvalidRequestError, UrlNotAllowedError
from services.url_policy import HostRule, UrlPolicy, is_address, parse_host_rule

POLICY = UrlPolicy.of(["example.com", "*.cdn.example", "media.test:8443", "192.0.2.7", "[2001:db8::7]:8080"])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("example.com", HostRule("example.com")),
        (" Example.COM. ", HostRule("example.com")),
        ("*.example.com", HostRule("example.com", subdomains=True)),
        ("example.com:8443", HostRule("example.com", port=8443)),
        ("*.example.com:81", HostRule("example.com", subdomains=True, port=81)),
        ("192.0.2.1", HostRule("192.0.2.1")),
        ("[2001:DB8:0::1]:8080", HostRule("2001:db8::1", port=8080)),
    ],
)
def test_host_rules(text: str, rule: HostRule) -> None:
    assert parse_host_rule(text) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "*.",
        "http://a",
        "a/b",
        "a:0",
        "a:65536",
        "a:b",
        "a b",
        "*.192.0.2.1",
        "a*b",
        "127.1",
        "u@h",
        "::1",
        "[::1",
    ],
)
def test_host_rules_that_mean_nothing(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="allowed host"):
        parse_host_rule(text)


def test_networks_that_mean_nothing() -> None:
    with pytest.raises(InvalidRequestError, match=r"10\.0\.0\.1/8"):
        UrlPolicy.of(["a"], ["10.0.0.1/8"])


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("http://example.com/a?b=c#d", "http://example.com/a?b=c"),
        ("HTTPS://EXAMPLE.com.:443/a", "https://example.com/a"),
        ("http://example.com:80", "http://example.com"),
        ("https://a.b.cdn.example/x", "https://a.b.cdn.example/x"),
        ("http://media.test:8443/", "http://media.test:8443/"),
        ("http://192.0.2.7/", "http://192.0.2.7/"),
        ("http://[2001:db8:0:0::7]:8080/", "http://[2001:db8::7]:8080/"),
    ],
)
def test_allowed_urls(url: str, canonical: str) -> None:
    checked = POLICY.check_url(url)
    assert (str(checked), checked.fragment) == (str(httpx.URL(canonical)), "")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "//example.com/",
        "http:///x",
        "ftp://example.com/",
        "file:///etc/passwd",
        "file://example.com/etc/passwd",
        "gopher://example.com/",
        "data:video/mp4;base64,AAAA",
        "http://user@example.com/",
        "http://user:pass@example.com/",
        "http://example.com@evil.test/",
        "http://evil.test\\@example.com/",
        "http://evil.test#@example.com/",
        "http://evil.test/",
        "http://notexample.com/",
        "http://example.com.evil.test/",
        "http://cdn.example/",
        "http://evilcdn.example/",
        "http://example.com:8080/",
        "https://example.com:80/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://media.test/",
        "http://192.0.2.7:81/",
        "http://192.0.2.07/",
        "http://0xc0.0.2.7/",
        "http://3221225991/",
        "http://[::ffff:192.0.2.7]/",
        "http://[fe80::1%25eth0]/",
        "http://exa mple.com/",
        "http://example%2ecom/",
        "http://example.com\n.evil.test/",
        "http://example..com/",
        "http://" + "a" * 10_000 + "/",
        "http://example.com/" + "a" * 10_000,
        "http://[::1/",
    ],
)
def test_refused_urls(url: str) -> None:
    with pytest.raises(UrlNotAllowedError) as caught:
        POLICY.check_url(url)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "spelling", ["0x7f.1", "0x7f000001", "2130706433", "127.1", "0177.0.0.1", "127.0.0.1.", "127。0。0。1"]
)
def test_other_spellings_of_loopback_never_stand_for_a_name(spelling: str) -> None:
    policy = UrlPolicy.of(["example.com"], ["127.0.0.0/8"])
    with pytest.raises(UrlNotAllowedError):
        policy.check_url(f"http://{spelling}/")


def test_the_default_is_to_refuse_everything() -> None:
    with pytest.raises(UrlNotAllowedError, match="turned off"):
        UrlPolicy().check_url("http://example.com/")


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"],
)
def test_public_addresses(address: str) -> None:
    assert UrlPolicy.of(["a"]).check_address(address) == ipaddress.ip_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.0.9",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "198.18.0.1",
        "192.0.2.1",
        "192.88.99.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:0:7f00:1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001:0:1::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "ff0e::1",
        "2001:db8::1",
        "5f00::1",
        "100::1",
        "nonsense",
        "",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    with pytest.raises(UrlNotAllowedError) as caught:
        UrlPolicy.of(["a"]).check_address(address)
    assert not address or address not in caught.value.message


def test_allowed_networks_open_just_what_they_name() -> None:
    policy = UrlPolicy.of(["a"], ["10.1.0.0/16", "fd00::/8"])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fd00::1"):
        policy.check_address(address)
    for address in ("10.2.0.1", "127.0.0.1", "fc00::1", "fe80::1"):
        with pytest.raises(UrlNotAllowedError):
            policy.check_address(address)


def test_is_address() -> None:
    assert is_address("127.0.0.1")
    assert is_address("::1")
    assert not is_address("example.com")
    assert not is_address("127.1")
