"""A page that renews itself, for browsers on this machine alone.

It is served on the loopback address. Other programs of the machine, and pages of other hosts that a
browser has open, do not know the address, which has a random token in it; and a name that somebody
else lets point at the loopback address is refused by the header Host. Nothing is taken from a
request but its path.
"""

from __future__ import annotations

import errno
import hmac
import json
import os
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vegrad.arrays.checks import as_count
from vegrad.watching.page import document

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")
READERS = 16  # that are sent news at the same time
ALIVE = 10.0  # seconds after which a reader is sent something, if there is no news
SLOW = 30.0  # seconds that a request or a reader may take
POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Server(ThreadingHTTPServer):
    """A server of one page.

    Args:
        port: the port; 0 for any that is free.

    Raises:
        TypeError, ValueError: it is no port, or one that is taken.
        OSError: it may not be used.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # where that lets another program take it over

    def __init__(self, port: int = 0) -> None:
        if as_count("port", port) > 65535:
            raise ValueError(f"port must be at most 65535, not {port}")
        self.token = secrets.token_urlsafe(24)
        self.news = threading.Condition()
        self.version, self.title, self.body = 0, "vegrad watch", ""
        self.readers = threading.BoundedSemaphore(READERS)
        self.ending = False
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ValueError(
                    f"port {port} is taken by another program: choose another, or leave it out for "
                    "one that is free"
                ) from error
            raise

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{ADDRESS}:{self.port}/{self.token}/"

    def show(self, title: str, body: str) -> None:
        """Show this from now on, and send it to those who look at the page."""
        with self.news:
            self.version, self.title, self.body = self.version + 1, title, body
            self.news.notify_all()

    def start(self) -> None:
        """Serve in a thread of its own."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """End all answers, and the server."""
        with self.news:
            self.ending = True
            self.news.notify_all()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a reader that has gone."""


class Handler(BaseHTTPRequestHandler):
    """The answer to one request."""

    server: Server
    server_version, sys_version = "vegrad", ""
    timeout = SLOW

    def do_GET(self) -> None:
        """Answer with the page or its news; all else is refused."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0] not in [f"{name}:{self.server.port}" for name in NAMES]:
            self._refuse("the page is for this machine alone")
            return
        empty, token, *rest = self.path.split("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()) or empty:
            self._refuse("the address of the page has a token, as `vegrad watch` printed it")
        elif rest == [""]:
            self._page()
        elif rest == ["events"]:
            self._events()
        else:
            self._refuse("there is nothing else here")

    def _refuse(self, why: str) -> None:
        self._head(HTTPStatus.FORBIDDEN, "text/plain; charset=utf-8")
        self.wfile.write(f"{why}\n".encode())

    def _head(self, status: HTTPStatus, kind: str, **more: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Connection": "close",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(18)
        with self.server.news:
            page = document(self.server.title, self.server.body, nonce)
        policy = POLICY.format(nonce=nonce)
        kind = "text/html; charset=utf-8"
        self._head(HTTPStatus.OK, kind, Content_Security_Policy=policy)
        self.wfile.write(page.encode())

    def _events(self) -> None:
        """Send what is shown whenever it changes, until the reader leaves (server-sent events)."""
        server = self.server
        if not server.readers.acquire(blocking=False):
            self._head(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8")
            self.wfile.write(b"too many look at this page\n")
            return
        try:
            self._head(HTTPStatus.OK, "text/event-stream; charset=utf-8")
            sent = -1
            while True:
                with server.news:
                    server.news.wait_for(lambda: server.version != sent or server.ending, ALIVE)  # noqa: B023
                    if server.ending:
                        return
                    news = server.version, server.title, server.body
                if news[0] == sent:
                    self.wfile.write(b": nothing new\n\n")
                else:
                    sent, title, body = news
                    content = json.dumps({"title": title, "body": body})
                    self.wfile.write(f"data: {content}\n\n".encode())
                self.wfile.flush()
        except OSError:
            return  # the reader has left
        finally:
            server.readers.release()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing of requests."""
