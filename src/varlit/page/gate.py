"""Who is let in: names of this machine, this page's own requests, bodies of a bounded size."""

from __future__ import annotations

import ipaddress
import socket
from email.message import Message
from urllib.parse import urlsplit

MAX_BODY_BYTES = 4 * 2**20
JSON = "application/json"


class RefusedError(Exception):
    """A request that is not answered; the text is a plain sentence for the page."""

    def __init__(self, status: int, message: str) -> None:
        """Refuse with an HTTP status."""
        super().__init__(message)
        self.status = status


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host's name or address."""
    address = _address(host)
    return host.lower().rstrip(".") == "localhost" if address is None else address.is_loopback


def check_host(headers: Message, given: str = "localhost") -> None:
    """Refuse names that are not this machine's own.

    A page elsewhere can point its own name at this machine and would then count as ours (DNS
    rebinding). An address cannot be bent so. The port is free: `ssh -L` may give another.

    Args:
        headers: Of the request.
        given: Where the page listens; what else than loopback is answered depends on it.

    Raises:
        RefusedError: If the `Host` header names another machine, or nothing that is a name.
    """
    try:
        host = urlsplit(f"//{headers.get('Host', '')}").hostname or ""
    except ValueError:  # such as `[::1`
        host = ""
    if is_loopback(host) or (not is_loopback(given) and _is_ours(host, given)):
        return
    names = "localhost" if is_loopback(given) else "localhost, this machine's name and addresses"
    raise RefusedError(
        403, f"this page answers to {names} only; see --host of varlit demo for other names"
    )


def _is_ours(host: str, given: str) -> bool:
    """Whether a page that others may reach answers to a name: any address, and its own names."""
    own = {given.lower().rstrip("."), socket.gethostname().lower()}
    own |= {name.partition(".")[0] for name in own if _address(name) is None}
    return _address(host) is not None or (host.rstrip(".") in own and host != "")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def check_own(headers: Message) -> None:
    """Refuse what another site's page sends: only ours may ask for work.

    Raises:
        RefusedError: If origin or content type are not those of our own page.
    """
    origin, host = headers.get("Origin"), headers.get("Host", "")
    is_own = origin is None or origin in (f"http://{host}", f"https://{host}")
    if not is_own or headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        raise RefusedError(403, "this request comes from another site; open the page itself")
    # A form of another site cannot send this type without asking first.
    if headers.get_content_type() != JSON:
        raise RefusedError(415, f"expected {JSON}")


def body_size(headers: Message) -> int:
    """How many bytes of body are announced.

    Raises:
        RefusedError: If it does not say, or too many.
    """
    text = headers.get("Content-Length", "")
    if not text.isdecimal() or "Transfer-Encoding" in headers:
        raise RefusedError(411, "the request does not say how long it is")
    if len(text) > 12 or int(text) > MAX_BODY_BYTES:
        raise RefusedError(413, f"the request is too large; at most {MAX_BODY_BYTES:,} bytes")
    return int(text)
