"""The server of the page: threads that can be counted, stopped and waited for."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import sys
import threading
import time
import traceback
from http.server import ThreadingHTTPServer
from typing import Any

from varlit.errors import UserError
from varlit.page.drawing import Studio
from varlit.page.gate import is_loopback
from varlit.page.handler import PageHandler

MAX_CONNECTIONS = 32
POLL_S = 0.2


class PageServer(ThreadingHTTPServer):
    """Serves one studio; made, it listens already.

    Args:
        studio: What draws.
        host: Name or address to listen on.
        port: 0 = any that is free.

    Raises:
        UserError: If it cannot listen there.
    """

    daemon_threads = False  # `server_close` waits for all of them

    def __init__(self, studio: Studio, host: str = "127.0.0.1", port: int = 0) -> None:
        self.studio, self.host, self.is_local = studio, host, is_loopback(host)
        self.is_stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._counting = threading.Lock()
        self._beginning = threading.Lock()
        self._has_begun = False
        try:
            self.address_family = socket.getaddrinfo(host, port)[0][0]
            super().__init__((host, port), PageHandler)
        except (OSError, OverflowError) as error:
            raise UserError(_why_not(host, port, error)) from None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """What to type into a browser on this machine."""
        anywhere = self.host in ("0.0.0.0", "::", "")
        host = "localhost" if anywhere else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def run(self) -> None:
        """Serve until Ctrl-C; then stop what is drawn and wait for every thread."""
        # In a thread of its own: Ctrl-C reaches the main one, and would tear a connection that is
        # just being accepted.
        serving = threading.Thread(target=self._serve)
        try:
            serving.start()
            while serving.is_alive():
                time.sleep(POLL_S)  # not join: interrupted, it takes the thread for ended
        except KeyboardInterrupt:
            pass
        finally:
            with self._beginning:
                self.is_stopping.set()
            if self._has_begun:
                self.shutdown()
                serving.join()
            self.stop()

    def _serve(self) -> None:
        # Ctrl-C while the thread starts leaves unknown whether it will run: it decides itself.
        with self._beginning:
            self._has_begun = not self.is_stopping.is_set()
        if self._has_begun:
            self.serve_forever(POLL_S)

    def stop(self) -> None:
        """End all connections and wait for their threads; drawing ends after its present step."""
        self.is_stopping.set()
        with self._counting:
            for connection in self._open:
                _hang_up(connection)
        self.server_close()

    def server_bind(self) -> None:
        """Bind without asking a name server who we are, which can take seconds."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection its thread, unless there are too many."""
        with self._counting:
            is_welcome = len(self._open) < MAX_CONNECTIONS and not self.is_stopping.is_set()
            if is_welcome:
                self._open.add(request)
        if is_welcome:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection and close it."""
        with self._counting:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong, unless a browser has merely left."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            traceback.print_exc(file=sys.stderr)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side may have been faster
        connection.shutdown(socket.SHUT_RDWR)


def _why_not(host: str, port: int, error: Exception) -> str:
    reason = (getattr(error, "strerror", None) or str(error)).lower()
    if not 0 <= port <= 65_535:
        return f"--port must lie in 0..65535 (0 = any that is free); got {port}"
    return (
        f"cannot listen on {host} port {port}: {reason}; take another, such as --port {port + 1}, "
        "or --port 0 for any that is free"
    )
