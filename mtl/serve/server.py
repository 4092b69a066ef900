"""uvicorn with the patience of a server: slow and silent clients are sent away, and SIGTERM loses no request."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import signal
import socket
from collections.abc import Callable
from typing import Any

import httptools
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mtl.errors import InputError
from mtl.kernels.threads import end_team, settle
from mtl.serve.app import Service

HEAD_BYTES = 64 << 10  # of a request's line and headers, or of what else comes that is no body
KEEP_ALIVE = 60  # seconds that a connection may rest between requests
READ_RATE = 16 << 10  # bytes of an answer that a client reads in a second, at the least
LINGER = 0.3  # seconds after SIGTERM in which requests on their way are told to go elsewhere


class Steady:
    """A parser that goes on with HTTP/1.1 where a client would rather speak another protocol, as RFC 9110 (7.8) allows.

    Java's client asks for HTTP/2 with each of its requests. httptools would take the body for the other protocol's, and
    the request for one without a body.
    """

    def __init__(self, parser: Any, protocol: HttpToolsProtocol) -> None:
        self.parser, self.protocol = parser, protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parser, name)

    def feed_data(self, data: bytes) -> None:
        while True:
            try:
                return self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stopped:
                if self.get_method() == b"CONNECT":
                    return None
                data = self.head() + data[stopped.args[0] :]
                self.parser = httptools.HttpRequestParser(self.protocol)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def head(self) -> bytes:
        """The request's head again, without the wish."""
        line = b"%s %s HTTP/%s" % (self.get_method(), self.protocol.url, self.get_http_version().encode())
        kept = [b"%s: %s" % header for header in self.protocol.headers if header[0] != b"upgrade"]
        return b"\r\n".join([line, *kept, b"", b""])


class Patient(HttpToolsProtocol):
    """A connection that ends where a request does not come whole in ``patience`` seconds, or where its client reads
    less of an answer than ``READ_RATE``."""

    reading: asyncio.TimerHandle | None = None
    writing: asyncio.TimerHandle | None = None
    partial = True  # whether a request has come in part, or is still to come after the connection
    head_bytes = 0  # that have come since the last part of a body

    def __init__(self, service: Service, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.service = service
        self.patience = service.limits.body_seconds + 10

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.parser: Any = Steady(self.parser, self)
        super().connection_made(transport)
        self.wait()

    def wait(self) -> None:
        self.reading = self.reading or self.loop.call_later(self.patience, self.give_up)

    def wait_no_more(self) -> None:
        if self.reading:
            self.reading.cancel()
            self.reading = None

    def give_up(self) -> None:
        self.reading = None
        if self.flow.read_paused:  # it is we who do not read
            self.wait()
        else:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.partial = True
        self.head_bytes += len(data)
        super().data_received(data)
        if self.partial:
            self.wait()
        if self.partial and self.head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("Request header fields too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.partial = True

    def on_headers_complete(self) -> None:
        if self.leaving:
            return
        super().on_headers_complete()
        self.head_bytes = 0

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self.head_bytes = 0

    @property
    def leaving(self) -> bool:
        """Whether the client asks for another protocol; the head comes again without that."""
        return bool(self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT")

    def on_message_complete(self) -> None:
        if self.leaving:
            return
        super().on_message_complete()
        self.partial, self.head_bytes = False, 0
        self.wait_no_more()

    def on_response_complete(self) -> None:
        self.watch()
        super().on_response_complete()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.watch()

    def watch(self) -> None:
        """Note how much of an answer the client has still to read."""
        self.watch_no_more()
        if left := self.transport.get_write_buffer_size():
            self.service.keep_unread(self.transport)
            self.writing = self.loop.call_later(self.patience, self.check_read, left)

    def watch_no_more(self) -> None:
        self.service.unread.discard(self.transport)
        if self.writing:
            self.writing.cancel()
            self.writing = None

    def check_read(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() < min(before, READ_RATE * self.patience):
            self.transport.abort()
        else:
            self.watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.wait_no_more()
        self.watch_no_more()


class Server(uvicorn.Server):
    """On the first signal, requests that come are told so while those that were accepted are answered; then it ends."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.service.draining:
            super().handle_exit(sig, frame)
            return
        self.service.draining = True
        asyncio.get_running_loop().call_soon_threadsafe(self.leave, sig)

    def leave(self, sig: int) -> None:
        asyncio.get_running_loop().call_later(LINGER, uvicorn.Server.handle_exit, self, sig, None)


def listening(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that a port that is taken is told before a model is loaded.

    Raises:
        InputError: it cannot be.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        # asyncio sets TCP_NODELAY where the protocol is named; else each answer waits 40 ms for an acknowledgement
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot listen at {host}:{port}: {why}") from None
    return found


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own alone; a name that only begins as such an address may be anybody's."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def configured(app: Starlette, service: Service, drain_seconds: int = 60) -> Server:
    """A server for an application; those that were accepted are answered within ``drain_seconds`` of a signal."""
    http: Any = functools.partial(Patient, service)
    config = uvicorn.Config(
        app, http=http, ws="none", lifespan="on", log_config=None, log_level="error", access_log=False,
        server_header=False, timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=drain_seconds,
    )  # fmt: skip
    return Server(config, service)


async def until_stopped(server: Server, at: socket.socket, ready: Callable[[], None]) -> None:
    """Serve at a socket; ``ready`` is called when requests are answered."""
    task = asyncio.ensure_future(server.serve([at]))
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    ready()
    await task


def run(server: Server, at: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT. Whatever computes with several threads does it in another thread than this."""
    settle()
    end_team()  # that of loading
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # uvicorn raises it again when it has ended
    try:
        asyncio.run(until_stopped(server, at, ready))
    finally:
        signal.signal(signal.SIGTERM, before)
