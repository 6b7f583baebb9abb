"""Download a file from a URL that a stranger chose, without being turned against one's own network.

Every hop is checked anew by :class:`~services.url_policy.UrlPolicy`. A host's name is resolved **once**; all
its addresses are checked; and the connection goes to the very address that was checked, so that a name
server which answers differently the second time (DNS rebinding) gains nothing. TLS certificates are still
verified against the host's name. Redirects are followed by hand, proxies and cookies are not used, and what
is not the file itself (bodies of errors, addresses) never reaches a message.
"""

import asyncio
import functools
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import BinaryIO

import httpx

from fastervlm_video.errors import DeadlineExceededError, PayloadTooLargeError, UrlFetchError, UrlNotAllowedError
from services.threads import finish_in_thread, write_to_disk
from services.url_policy import DEFAULT_PORTS, IPAddress, UrlPolicy, is_address

__all__ = ["Resolver", "fetch_file", "resolve_host"]

logger = logging.getLogger(__name__)

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port to addresses; raises ``OSError`` if there are none."""

_CHUNK_BYTES = 256 * 1024
_CONNECT_SECONDS = 5.0
_MAX_ADDRESSES = 4
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "fastervlm-video", "Connection": "close"}


async def resolve_host(host: str, port: int) -> list[str]:
    """The system's resolver: all addresses of a host, in its order of preference."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def fetch_file(
    url: str,
    *,
    policy: UrlPolicy,
    limit_bytes: int,
    timeout_seconds: float,
    sink: BinaryIO,
    resolver: Resolver = resolve_host,
    ssl_context: ssl.SSLContext | None = None,
) -> int:
    """Download ``url`` into ``sink``.

    Args:
        url: an http or https URL.
        policy: what may be fetched.
        limit_bytes: largest file; the download is cut there.
        timeout_seconds: for everything together, redirects and names included.
        sink: written to in a thread, a quarter of a MiB at a time; on an error it may hold a part of the file.
        resolver: finds a host's addresses.
        ssl_context: certificates to trust; None is the usual public ones.

    Returns:
        Bytes written.

    Raises:
        UrlNotAllowedError: ``policy`` forbids the URL, an address of its host, or a redirect.
        UrlFetchError: no such host, no connection, broken off, or a status other than 200.
        PayloadTooLargeError: the file is larger than ``limit_bytes``.
        DeadlineExceededError: it took longer than ``timeout_seconds``.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            context = await asyncio.to_thread(_public_ssl_context) if ssl_context is None else ssl_context
            target = policy.check_url(url)
            for hop in range(policy.max_redirects + 1):
                async with _get(target, policy, resolver, context) as response:
                    if response.status_code not in _REDIRECTS:
                        return await _save(response, limit_bytes, sink)
                    target = _redirected(target, response, policy)
                logger.debug("redirect %d of %s", hop + 1, policy.max_redirects)
    except TimeoutError as exc:
        raise DeadlineExceededError(f"the file was not downloaded within {timeout_seconds:g} s") from exc
    raise UrlFetchError(f"the URL was redirected more than {policy.max_redirects} times")


@functools.cache
def _public_ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


def _redirected(source: httpx.URL, response: httpx.Response, policy: UrlPolicy) -> httpx.URL:
    """Where a redirect leads, if that is allowed; its host, which may be internal, is not named to the caller."""
    location = response.headers.get("location")
    if not location:
        raise UrlFetchError(f"the host answered with a redirect (status {response.status_code}) that leads nowhere")
    try:
        return policy.check_url(source.join(location))
    except (UrlNotAllowedError, httpx.InvalidURL) as exc:
        logger.warning("refused to follow a redirect from %s: %s", source.host, exc)
        raise UrlNotAllowedError("the URL redirects to a place that is not allowed") from exc


async def _checked_addresses(url: httpx.URL, policy: UrlPolicy, resolver: Resolver) -> list[IPAddress]:
    """All addresses of the URL's host; one that is not allowed forbids them all."""
    host, port = _ascii_host(url), url.port or DEFAULT_PORTS[url.scheme]
    try:
        found = [host] if is_address(host) else await resolver(host, port)
    except (OSError, UnicodeError) as exc:
        raise UrlFetchError("the URL's host name could not be resolved") from exc
    if not found:
        raise UrlFetchError("the URL's host name has no address")
    try:
        return [policy.check_address(address) for address in found][:_MAX_ADDRESSES]
    except UrlNotAllowedError:
        logger.warning("refused to connect to %s, whose addresses are %s", host, list(found))
        raise


def _ascii_host(url: httpx.URL) -> str:
    """The host as it goes over the wire (``url.host`` has international names decoded)."""
    return url.raw_host.decode("ascii")


@asynccontextmanager
async def _get(
    url: httpx.URL, policy: UrlPolicy, resolver: Resolver, context: ssl.SSLContext
) -> AsyncIterator[httpx.Response]:
    """One request without redirects, to the first checked address that accepts a connection."""
    addresses = await _checked_addresses(url, policy, resolver)
    # A bare transport: no cookies, no environment, no default headers; nothing is kept open for a next request.
    async with httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=httpx.Limits(max_connections=1)) as net:
        try:
            response = await _connect(net, url, addresses)
            try:
                yield response
            finally:
                await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            logger.info("cannot connect to %s: %s", url.host, exc)
            raise UrlFetchError("no connection could be made to the URL's host") from exc
        except httpx.TransportError as exc:
            logger.info("the download from %s broke off: %r", url.host, exc)
            raise UrlFetchError(f"the download broke off ({type(exc).__name__})") from exc


async def _connect(net: httpx.AsyncHTTPTransport, url: httpx.URL, addresses: Sequence[IPAddress]) -> httpx.Response:
    """Send the request to each address until one accepts the connection; the name is in Host and in TLS."""
    for last, address in zip([False] * (len(addresses) - 1) + [True], addresses, strict=True):
        request = httpx.Request(
            "GET",
            url.copy_with(host=str(address)),
            headers={"Host": url.netloc.decode("ascii"), **_HEADERS},
            extensions={"sni_hostname": _ascii_host(url), "timeout": {"connect": _CONNECT_SECONDS}},
        )
        try:
            return await net.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            if last:
                raise
    raise AssertionError("there is at least one address")


async def _save(response: httpx.Response, limit_bytes: int, sink: BinaryIO) -> int:
    """Write the body of a 200 to the sink, as it arrives."""
    if response.status_code != HTTPStatus.OK:
        raise UrlFetchError(f"the URL's host answered with status {response.status_code}, not 200")
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise UrlFetchError(f"the host sent the file with Content-Encoding {encoding[:40]!r}, which was not asked for")
    too_large = PayloadTooLargeError(f"a file may have at most {limit_bytes} bytes, and the URL's has more")
    declared = response.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise too_large
    written_bytes = 0
    async for chunk in response.aiter_raw(_CHUNK_BYTES):
        written_bytes += len(chunk)
        if written_bytes > limit_bytes:
            raise too_large
        await finish_in_thread(write_to_disk, sink, chunk)
    return written_bytes
