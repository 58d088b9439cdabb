"""One connection of the page: a few fixed names to get, one thing to post, no traceback to see."""

from __future__ import annotations

import json
import select
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import torch

from varlit.errors import UserError
from varlit.page.gate import JSON, RefusedError, body_size, check_host, check_own
from varlit.page.requests import DrawRequest, parse_request
from varlit.page.turns import QueueFullError

if TYPE_CHECKING:
    from varlit.page.server import PageServer

SCRIPT, STYLE = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", STYLE),
    "/page.js": ("page.js", SCRIPT),
    "/settings.js": ("settings.js", SCRIPT),
    "/stage.js": ("stage.js", SCRIPT),
    "/brush.js": ("brush.js", SCRIPT),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""All files there are; a path is looked up here and never on the disk."""
CARD_PATH, DRAW_PATH = "/api/model", "/api/draw"
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
FAULT = "Something went wrong inside varlit; the terminal that runs varlit demo says what."
FULL_MEMORY = "The device is out of memory; ask for fewer variants."
DRAIN_BYTES = 16 * 2**20


class PageHandler(BaseHTTPRequestHandler):
    """Answers one request; HTTP/1.0, so the end of an answer is the end of the connection."""

    server: PageServer
    server_version, sys_version = "varlit", ""
    timeout = 60  # seconds that a read may stand still, and a write may take in all

    def do_GET(self) -> None:
        """Send one of the fixed files, or what the page shows of the model."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Draw."""
        self._answer(self._post)

    def _get(self) -> None:
        path = self.path.partition("?")[0]
        if path == CARD_PATH:
            self._send(json.dumps(self.server.studio.card).encode(), JSON)
        elif path in STATIC:
            name, kind = STATIC[path]
            self._send(files("varlit.page").joinpath("static", name).read_bytes(), kind)
        else:
            raise RefusedError(404, "there is no such page")

    def _post(self) -> None:
        check_own(self.headers)
        if self.path != DRAW_PATH:
            raise RefusedError(404, "there is no such page")
        body = self.rfile.read(body_size(self.headers))
        request = parse_request(body, self.server.studio.bounds)
        try:
            with self.server.studio.queue.place() as ahead:
                self._begin("application/x-ndjson")
                self._stream(request, ahead)
        except QueueFullError:
            raise RefusedError(429, "several drawings wait already; try again shortly") from None

    def _stream(self, request: DrawRequest, ahead: int) -> None:
        """Send events while they come; what goes wrong from here on is an event as well."""
        try:
            if ahead:
                self._send_event({"event": "waiting", "ahead": ahead})
            with closing(self.server.studio.draw(request, self._has_left)) as events:
                for event in events:
                    self._send_event(event)
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the reader left, or pressed Stop
        except torch.OutOfMemoryError:
            self._send_event({"event": "error", "message": FULL_MEMORY})
        except UserError as error:
            self._send_event({"event": "error", "message": str(error)})
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self._send_event({"event": "error", "message": FAULT})

    def _has_left(self) -> bool:
        """Whether nobody reads the answer any more."""
        if self.server.is_stopping.is_set():
            return True
        try:
            readable, _, _ = select.select([self.connection], [], [], 0)
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True

    def _answer(self, answer: Callable[[], None]) -> None:
        """Answer, or say in one sentence why not."""
        try:
            check_host(self.headers, self.server.host)
            answer()
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except RefusedError as error:
            self._drain(error.status)
            self._refuse(error.status, str(error))
        except UserError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, FAULT)

    def _drain(self, status: int) -> None:
        """Read on past a body that is too large, or its sender never sees the answer."""
        length = self.headers.get("Content-Length", "")
        if status == HTTPStatus.TOO_MANY_REQUESTS or not length.isdecimal() or len(length) > 12:
            return
        left = min(int(length), DRAIN_BYTES)
        while left > 0 and (chunk := self.rfile.read(min(left, 65_536))):
            left -= len(chunk)

    def _refuse(self, status: int, message: str) -> None:
        try:
            self._send(json.dumps({"message": message}).encode(), JSON, status)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _send(self, body: bytes, kind: str, status: int = HTTPStatus.OK) -> None:
        self._begin(kind, status, len(body))
        self.wfile.write(body)

    def _send_event(self, event: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(event).encode() + b"\n")

    def _begin(self, kind: str, status: int = HTTPStatus.OK, size: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if size is not None:
            self.send_header("Content-Length", str(size))
        for name, value in SECURITY.items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no request that we know, in our own words."""
        self._refuse(code, "this is no request that the page makes")

    def log_message(self, format: str, *args: object) -> None:
        """Keep the terminal quiet: what goes wrong inside is printed where it happens."""
