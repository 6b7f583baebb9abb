"""Which URLs the service may fetch. Pure: nothing here resolves a name or opens a connection.

Default-deny, in three steps, each of which must pass: the URL's form (scheme, no user, one spelling), its
host and port (an allow-list), and every address its host resolves to (public, or in an allowed network).
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import httpx

from fastervlm_video.errors import InvalidRequestError, UrlNotAllowedError

__all__ = ["HostRule", "IPAddress", "IPNetwork", "UrlPolicy", "is_address", "parse_host_rule"]

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_URL_CHARS = 8192

_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")
# A last label of digits or 0x… is a number to some resolvers (127.1, 0x7f.1, 2130706433), and a name to others.
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")

_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_SIX_TO_FOUR_RELAYS = IPv4Network("192.88.99.0/24")  # RFC 7526: deprecated, yet "global" to ipaddress


@dataclass(frozen=True, slots=True)
class HostRule:
    """One entry of the allow-list.

    Attributes:
        host: lower-case host name, or an address in its canonical spelling.
        subdomains: whether this means the names below ``host``, and not ``host`` itself.
        port: the only port allowed; None allows the scheme's default port.
    """

    host: str
    subdomains: bool = False
    port: int | None = None

    def allows(self, scheme: str, host: str, port: int) -> bool:
        """Whether a URL with these parts matches."""
        named = host.endswith(f".{self.host}") if self.subdomains else host == self.host
        return named and port == (DEFAULT_PORTS[scheme] if self.port is None else self.port)


def parse_host_rule(text: str) -> HostRule:
    """Read ``host``, ``*.example.com``, ``host:8443``, ``192.0.2.1`` or ``[2001:db8::1]:8080``.

    Raises:
        InvalidRequestError: it is none of these.
    """
    match = re.fullmatch(r"(\*\.)?(\[[0-9a-f:.]+\]|[^\[\]:/@*\s]+)(?::([0-9]{1,5}))?", text.strip().lower())
    problem = InvalidRequestError(
        f"cannot read {text!r} as an allowed host; write host, *.example.com, host:port or [IPv6 address]:port"
    )
    if match is None:
        raise problem
    wildcard, host, port = match.groups()
    try:
        host = _canonical_host(host.strip("[]"))
    except UrlNotAllowedError as exc:
        raise problem from exc
    number = None if port is None else int(port)
    if (number is not None and not 0 < number < 2**16) or (wildcard and _as_address(host) is not None):
        raise problem
    return HostRule(host, subdomains=wildcard is not None, port=number)


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """What may be fetched.

    Attributes:
        allowed_hosts: hosts that may be named in a URL; none turns fetching off.
        allowed_networks: networks that may be reached although they are not public.
        max_redirects: most redirects to follow; each is checked like the first URL.
    """

    allowed_hosts: tuple[HostRule, ...] = ()
    allowed_networks: tuple[IPNetwork, ...] = ()
    max_redirects: int = 3

    @classmethod
    def of(cls, hosts: Iterable[str], networks: Iterable[str] = (), max_redirects: int = 3) -> "UrlPolicy":
        """Build one from text.

        Raises:
            InvalidRequestError: an entry cannot be read.
        """
        try:
            parsed = tuple(ipaddress.ip_network(text) for text in networks)
        except ValueError as exc:
            raise InvalidRequestError(f"an allowed network must be like 10.0.0.0/8: {exc}") from exc
        return cls(tuple(parse_host_rule(text) for text in hosts), parsed, max_redirects)

    def check_url(self, url: str | httpx.URL) -> httpx.URL:
        """The URL, parsed and in one spelling: host lower-case and without a final dot, no fragment.

        Raises:
            UrlNotAllowedError: fetching is off, or the URL's form, host or port is not allowed.
        """
        if not self.allowed_hosts:
            raise UrlNotAllowedError("fetching from URLs is turned off on this server; upload the file instead")
        parsed = _parse(url)
        host = _canonical_host(parsed.raw_host.decode("ascii"))
        port = parsed.port or DEFAULT_PORTS[parsed.scheme]
        if not any(rule.allows(parsed.scheme, host, port) for rule in self.allowed_hosts):
            raise UrlNotAllowedError(f"this server may not fetch from {host} port {port}; upload the file instead")
        return parsed.copy_with(host=host, fragment=None)

    def check_address(self, address: str) -> IPAddress:
        """An address a host resolved to, if it may be connected to.

        Raises:
            UrlNotAllowedError: it is not public and in no allowed network. The message does not name it.
        """
        parsed = _as_address(address)
        if parsed is None:
            raise UrlNotAllowedError("the host has an address that cannot be checked")
        inner = _embedded(parsed)
        allowed = any(
            candidate.version == network.version and candidate in network
            for candidate in (parsed, inner)
            for network in self.allowed_networks
        )
        if not allowed and not _is_public(inner):
            raise UrlNotAllowedError("the host has an address that is not public; upload the file instead")
        return parsed


def _parse(url: str | httpx.URL) -> httpx.URL:
    try:
        if len(str(url)) > MAX_URL_CHARS:
            raise UrlNotAllowedError(f"a URL may have at most {MAX_URL_CHARS} characters, got {len(str(url))}")
        parsed = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise UrlNotAllowedError(f"the URL cannot be read: {exc}") from exc
    if parsed.scheme not in DEFAULT_PORTS:
        raise UrlNotAllowedError(f"a URL must begin with http:// or https://, got the scheme {parsed.scheme[:20]!r}")
    if parsed.userinfo:
        raise UrlNotAllowedError("a URL must not contain a user name or password")
    if parsed.port is not None and not 0 < parsed.port < 2**16:
        raise UrlNotAllowedError(f"a port must be in [1, 65535], got {parsed.port}")
    return parsed


def _canonical_host(host: str) -> str:
    """One spelling per host: names lower-case, without a final dot; addresses as ``ipaddress`` writes them."""
    name = host.lower().removesuffix(".")
    address = _as_address(name)
    if address is not None:
        return str(address)
    if not _HOST_NAME.fullmatch(name) or _NUMERIC_LABEL.fullmatch(name.rpartition(".")[2]):
        raise UrlNotAllowedError(f"{host[:80]!r} is not a host name, nor an address in its usual spelling")
    return name


def _as_address(text: str) -> IPAddress | None:
    """The address, or None. One with a zone (``fe80::1%eth0``) is local by definition, and is none here."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if isinstance(address, IPv6Address) and address.scope_id else address


def is_address(host: str) -> bool:
    """Whether a URL's host is an address and needs no resolving."""
    return _as_address(host) is not None


def _embedded(address: IPAddress) -> IPAddress:
    """The IPv4 address to which packets for an IPv6 address go in the end, if that is what it means."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_public(address: IPAddress) -> bool:
    """Stricter than ``is_global``, which also holds for multicast, relays and some reserved IPv6 ranges."""
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, IPv4Address):
        return address not in _SIX_TO_FOUR_RELAYS
    return address in _GLOBAL_UNICAST_V6
