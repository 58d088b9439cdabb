"""Who is let in: names of this machine, this page's own requests, bodies of a bounded size."""

from __future__ import annotations

import ipaddress
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
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def check_host(headers: Message) -> None:
    """Refuse names that are not this machine's own.

    A page elsewhere can point its own name at 127.0.0.1 and would then count as ours (DNS
    rebinding). The port is free: `ssh -L` may give another.

    Raises:
        RefusedError: If the `Host` header names another machine.
    """
    host = urlsplit(f"//{headers.get('Host', '')}").hostname or ""
    if not is_loopback(host):
        raise RefusedError(
            403, "this page answers to localhost only; see --host of varlit demo for other names"
        )


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
