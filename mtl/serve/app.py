"""The server as an ASGI application: who may ask, what is read of a request, and how every answer ends."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from mtl.encode.tokenizer import Pair, Tokenized, TooLong
from mtl.errors import InputError, MtlError, one_line, printable, shown
from mtl.index.index import Index
from mtl.kernels.threads import settle
from mtl.serve.contracts import CHARACTERS, Fields, Limits, Refused, dumps, read_fields
from mtl.serve.metrics import SIZES, Metrics
from mtl.serve.model import VECTORS, Served, Side
from mtl.serve.questions import Question
from mtl.serve.queue import Broken, Overloaded, Queue, Row

INLINE = 4096  # bytes of a body that are worked on at once, where a thread would cost more
LOGGED = ("time", "method", "path", "status", "texts", "tokens", "cut",
          "total_ms", "tokenize_ms", "queue_ms", "compute_ms")  # fmt: skip

LIMITS = Limits()

T = TypeVar("T")

log = logging.getLogger("mtl")


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


@dataclasses.dataclass(eq=False)
class Call:
    """A request on its way through the server, and what is counted of it; times are in seconds."""

    service: Service
    request: Request
    openai: bool
    fields: Fields = dataclasses.field(default_factory=lambda: Fields({}))
    given: dict[str, Any] = dataclasses.field(default_factory=dict)  # the values of what its route reads of them
    texts: int = 0
    tokens: int = 0
    characters: int = 0
    cut: int = 0
    began: float = dataclasses.field(default_factory=time.monotonic)
    tokenization: float = 0.0
    queued: float = 0.0
    inference: float = 0.0
    held: int = 0  # bytes of its body

    @property
    def served(self) -> Served:
        return self.service.served

    @property
    def status(self) -> int:
        """With which a contract refuses what it cannot work with."""
        return 400 if self.openai else 422

    @property
    def prompt(self) -> str:
        """What goes before each text.

        Raises:
            InputError: the model has no such prompt.
        """
        return self.served.prompt(self.given.get("prompt_name"))

    def count(self, texts: int, field: str) -> None:
        """Note the number of texts.

        Raises:
            Refused: there are none, or too many.
        """
        most = self.service.limits.texts
        if not texts:
            raise Refused(400, f"`{field}` cannot be empty", field, failure="empty")
        if texts > most:
            given = f"batch size {texts} > maximum allowed batch size {most}"
            raise Refused(self.status, given, field, failure="batch_size")
        self.texts = texts

    async def tokenized(
        self, texts: Sequence[str], field: str, empty: bool = False, prompt: str | None = None
    ) -> tuple[Row, ...]:
        """The rows of texts, cut where the request, or else the server, says so.

        Raises:
            Refused: too many texts, or one that is empty or too long.
        """
        self.count(len(texts), field)
        self.check(texts, field, empty)
        prompt = self.prompt if prompt is None else prompt
        return await self.aside(self.keep, field, self.served.tokenize, texts, prompt)

    async def tokenized_pairs(self, pairs: Sequence[Pair], field: str, empty: bool = False) -> tuple[Row, ...]:
        """As ``tokenized``, a row for each pair of texts."""
        self.count(len(pairs), field)
        self.check_no_prompt("pairs of texts", field)
        for pair in pairs:
            self.check(pair, field, empty)
        return await self.aside(self.keep, field, self.served.tokenize_pairs, pairs)

    async def from_ids(self, rows: Sequence[list[int]], field: str) -> tuple[Row, ...]:
        """Rows that came as ids."""
        self.count(len(rows), field)
        self.check_no_prompt("token ids", field)
        return await self.aside(self.keep, field, self.served.check_ids, rows)

    def check_no_prompt(self, what: str, field: str) -> None:
        """That no prompt is asked for where none goes before what came."""
        if (name := self.given.get("prompt_name")) is not None:
            given = f"`prompt_name` is {shown(name)}, and `{field}` holds {what}"
            raise Refused(self.status, f"{given}; expected a text, or several", "prompt_name")

    def check(self, texts: Sequence[str], field: str, empty: bool = False) -> None:
        """Note how many characters texts have.

        Raises:
            Refused: one is empty or too long.
        """
        most = self.served.limit * CHARACTERS
        for i, text in enumerate(texts):
            if not text and not empty:
                raise Refused(self.status, f"Input validation error: `{field}` cannot be empty (text {i})", field)
            if len(text) > most:
                given = f"text {i} has {len(text)} characters"
                raise Refused(self.status, f"Input validation error: {given}; expected at most {most}", field)
        self.characters += sum(map(len, texts))

    async def aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """What a function gives, in a thread of its own where there is much to do."""
        if self.held <= INLINE:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self.service.pool, work, *arguments)

    def read(self, body: bytearray, question: Question) -> None:
        """Read what a question reads of a body.

        Raises:
            Refused: as ``read_fields`` and ``Question.read``.
        """
        self.fields = read_fields(body, self.status)
        self.given = question.read(self.fields)

    @property
    def cutting(self) -> tuple[bool, Side | None]:
        """Whether texts over the limit are cut, and on which side where the request says it."""
        truncate = self.given.get("truncate")
        return self.service.truncate if truncate is None else truncate, self.given.get("truncation_direction")

    def keep(self, field: str, make: Callable[..., Tokenized], *arguments: Any) -> tuple[Row, ...]:
        """The rows that a function makes, cut as the request says, with their tokens counted."""
        start = time.monotonic()
        try:
            made = make(*arguments, *self.cutting)
        except TooLong as error:
            limit = f"`{field}` must have less than {self.served.limit + 1} tokens. Given: {error.tokens}"
            raise Refused(self.status, f"Input validation error: {limit} (text {error.number})", field) from None
        self.cut, self.tokens = made.cut_texts, sum(map(len, made.rows))
        self.tokenization = time.monotonic() - start
        return tuple(map(tuple, made.rows))

    async def values(self, program: str, rows: Sequence[Row]) -> list[Any]:
        """What a program gives of rows, computed in turns beside what others asked for.

        Raises:
            Refused: they are too many at once; or no answer came in time.
            Overloaded, Broken: they are not taken.
            ClientLeft: the client has left before the answer was there.
        """
        limits, queue = self.service.limits, self.service.queue
        if self.tokens > limits.queued_tokens:
            raise Refused(413, f"the request has {self.tokens} tokens; expected at most {limits.queued_tokens}")
        ticket = queue.submit(program, rows)
        gone = asyncio.ensure_future(disconnected(self.request))
        try:
            both: set[asyncio.Future[Any]] = {ticket.future, gone}
            await asyncio.wait(both, timeout=limits.answer_seconds, return_when=asyncio.FIRST_COMPLETED)
            if ticket.future.done():
                values = ticket.future.result()
                started = ticket.started or ticket.queued
                self.queued, self.inference = started - ticket.queued, (ticket.ended or started) - started
                return values
            if gone.done():
                raise ClientLeft
            raise Refused(503, f"no answer within {limits.answer_seconds:.0f} seconds", retry_after=queue.retry_after)
        finally:
            gone.cancel()
            if not ticket.future.done():
                queue.drop(ticket)

    async def vectors(self, rows: Sequence[Row], normalize: bool = True) -> Any:
        """Embeddings of rows (texts, dim), cut to the first ``dimensions`` that the request asks for."""
        return self.served.finished(await self.values(VECTORS, rows), normalize, self.given.get("dimensions"))

    def headers(self) -> dict[str, str]:
        """TEI's, and how many texts were cut."""
        took = {
            "total-time": time.monotonic() - self.began,
            "tokenization-time": self.tokenization,
            "queue-time": self.queued,
            "inference-time": self.inference,
        }
        return {
            "x-compute-type": self.served.encoder.device.type,
            "x-compute-time": str(round(1000 * took["total-time"])),
            "x-compute-characters": str(self.characters),
            "x-compute-tokens": str(self.tokens),
            **{f"x-{name}": str(round(1000 * seconds)) for name, seconds in took.items()},
            **({"x-mtl-truncated": str(self.cut)} if self.cut else {}),
        }


class Service:
    """A model, its queue, and the rules by which requests are let in.

    ``keys`` are the hashes that ``read_keys`` gives; none lets everybody in. ``truncate`` is for requests that do not
    say it themselves. ``report`` is given a record of each request. ``index`` is what /search searches.
    """

    def __init__(
        self,
        served: Served,
        limits: Limits = LIMITS,
        keys: Sequence[bytes] = (),
        truncate: bool = False,
        report: Callable[[dict[str, Any]], None] | None = None,
        index: Index | None = None,
    ) -> None:
        self.served, self.limits, self.keys, self.truncate, self.report = served, limits, keys, truncate, report
        self.index = index
        self.metrics = Metrics()
        self.draining = False
        self.requests = self.held = 0
        self.unread: set[asyncio.WriteTransport] = set()  # connections whose clients have still to read of an answer
        self.pool = ThreadPoolExecutor(2, "mtl-tokenize", initializer=settle)
        self.searches = ThreadPoolExecutor(2, "mtl-search", initializer=settle)  # of its own: they may take seconds
        self.queue = Queue(served.compute, served.turn_tokens, limits.queued_tokens, limits.stuck_seconds, self.on_turn)

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        yield
        self.queue.close()
        self.queue.thread.join(5)
        for pool in (self.pool, self.searches):
            pool.shutdown(wait=False, cancel_futures=True)

    def on_turn(self, rows: int, tokens: int) -> None:
        """Called in the queue's thread."""
        self.metrics.observe("te_batch_next_size", rows, SIZES)
        self.metrics.observe("te_batch_next_tokens", tokens, SIZES)

    @property
    def fault(self) -> str | None:
        """Why no request should be sent here, in words."""
        return "the server is about to stop" if self.draining else self.queue.fault

    def endpoint(self, name: str, question: Question) -> Any:
        """A route's function: all that goes before and after its handler, whose answer is sent as JSON."""
        openai = question.openai

        async def respond(request: Request) -> Response:
            call = Call(self, request, openai)
            try:
                self.let_in(request)
                try:
                    if question.method == "POST":
                        self.queue.check_room(1)  # before anything is read
                        await call.aside(call.read, await self.body(call), question)
                        self.check_requests()  # those that came whole while this one did not
                    self.requests += 1
                    try:
                        answer = await question.handler(call)
                    finally:
                        self.requests -= 1
                finally:
                    self.held -= call.held
                response = Response(dumps(answer), 200, call.headers(), "application/json")
                self.count(name, call, None)
            except (ClientDisconnect, ClientLeft):
                response = Response(status_code=499)
                self.count(name, call, "dropped")
            except Exception as error:
                refused = refusal(error, call.status)
                response = self.refuse(refused, openai)
                self.count(name, call, refused.failure)
            self.log(call, response.status_code)
            return response

        return respond

    def let_in(self, request: Request) -> None:
        """Refuse a request that nothing need be read of.

        Raises:
            Refused: it has no key, or comes when no more can be taken.
        """
        self.check_key(request)
        if self.draining:
            raise Refused(503, "the server is about to stop", retry_after=1)
        self.check_requests()

    def check_requests(self) -> None:
        """That there are not too many that wait for an answer. Bodies that come slowly take no place from others."""
        if self.requests >= self.limits.requests:
            given = f"Model is overloaded: {self.requests} requests wait"
            raise Refused(429, given, retry_after=self.queue.retry_after)

    def check_key(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = hashed(key.strip().encode("latin-1")) if scheme.lower() == "bearer" else b""  # as headers are read
        matches = [hmac.compare_digest(given, known) for known in self.keys]  # all of them, whichever matches
        if self.keys and not any(matches):
            raise Refused(401, "expected a key that this server knows, as in `Authorization: Bearer KEY`")

    async def body(self, call: Call) -> bytearray:
        """A request's body.

        Raises:
            Refused: it is too large, comes too slowly, is not called JSON, or is compressed.
            ClientDisconnect: the rest of it does not come.
        """
        headers = call.request.headers
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            raise Refused(415, "expected the header `Content-Type: application/json`")
        if (coding := headers.get("content-encoding", "identity").strip().lower()) not in ("", "identity"):
            raise Refused(415, f"Content-Encoding is {shown(coding)}; expected the JSON as it is")
        declared = headers.get("content-length", "0")
        self.check_size(int(declared) if declared.isdecimal() and len(declared) < 19 else 0)
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for part in call.request.stream():
                    body += part
                    self.hold(call, len(body))
        except TimeoutError:
            raise Refused(408, f"the body did not come within {self.limits.body_seconds:.0f} seconds") from None
        return body

    def check_size(self, size: int) -> None:
        if size > self.limits.body_bytes:
            raise Refused(413, f"the body has {size} bytes or more; expected at most {self.limits.body_bytes}")

    def hold(self, call: Call, size: int) -> None:
        """Have a call keep a body of so many bytes.

        Raises:
            Refused: it is over the limit, or all together are.
        """
        self.check_size(size)
        more = size - call.held
        if self.held + more > self.limits.held_bytes:
            raise Refused(429, "Model is overloaded: too many bytes are under way", retry_after=self.queue.retry_after)
        self.held += more
        call.held += more

    def keep_unread(self, connection: asyncio.WriteTransport) -> None:
        """Have a connection keep an answer until its client has read it. Where all together are over the limit, those
        with the most are ended, so that who reads slowly takes no place from others; the last of them may go on."""
        self.unread.add(connection)
        left = {each: each.get_write_buffer_size() for each in self.unread}
        while len(left) > 1 and sum(left.values()) > self.limits.unread_bytes:
            most = max(left, key=left.__getitem__)
            del left[most]
            self.unread.remove(most)
            most.abort()

    def refuse(self, refused: Refused, openai: bool) -> Response:
        """The answer to a request that is not answered."""
        headers = {"retry-after": str(refused.retry_after)} if refused.retry_after else {}
        if refused.status == 401:
            headers["www-authenticate"] = "Bearer"
        if refused.status == 408 or self.draining:  # else what is left of the body is read, and thrown away
            headers["connection"] = "close"
        return Response(refused.body(openai), refused.status, headers, "application/json")

    def count(self, name: str, call: Call, failed: str | None) -> None:
        """Note what became of a request, under TEI's names."""
        method = "batch" if call.texts > 1 else "single"
        self.metrics.add("te_request_count", method=method)
        self.metrics.add(f"te_{name}_count")
        if failed:
            self.metrics.add("te_request_failure", err=failed)
            return
        self.metrics.add("te_request_success", method=method)
        self.metrics.add(f"te_{name}_success")
        self.metrics.add("mtl_truncated_texts", call.cut)
        if call.tokens:
            self.metrics.observe("te_request_input_length", call.tokens, SIZES)
            self.metrics.observe("te_request_tokenization_duration", call.tokenization)
            self.metrics.observe("te_request_queue_duration", call.queued)
            self.metrics.observe("te_request_inference_duration", call.inference)
        self.metrics.observe("te_request_duration", time.monotonic() - call.began)

    def log(self, call: Call, status: int) -> None:
        """Report a request. Texts are not in it."""
        if self.report is None:
            return
        times = (time.monotonic() - call.began, call.tokenization, call.queued, call.inference)
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        said = (moment, call.request.method, call.request.scope["path"], status, call.texts, call.tokens, call.cut)
        self.report(dict(zip(LOGGED, (*said, *(round(1000 * x, 2) for x in times)), strict=True)))


async def disconnected(request: Request) -> None:
    """Return when the client has left; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def refusal(error: Exception, status: int) -> Refused:
    """What a client is told of an error; nothing of ours, and no path, where nobody foresaw it."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Overloaded):
        return Refused(429, f"Model is overloaded: {error}", retry_after=error.retry_after)
    if isinstance(error, Broken):
        return Refused(503, str(error), retry_after=10)
    if isinstance(error, InputError):
        return Refused(status, f"Input validation error: {error}")
    if isinstance(error, MtlError):
        return Refused(424, one_line(error))
    log.error("an error that nobody foresaw", exc_info=error)
    return Refused(500, "an error that nobody foresaw; the server's log says more")


def hashed(key: bytes) -> bytes:
    """A key's hash; hashes are compared, so that the time says nothing of a key's length."""
    return hashlib.sha256(key).digest()


def read_keys(text: str) -> list[bytes]:
    """The hashes of a file's keys, one a line; # begins a comment.

    Raises:
        InputError: there is none.
    """
    lines = map(str.strip, text.removeprefix("\ufeff").splitlines())  # some editors begin a file with that mark
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise InputError("the file of API keys has none; expected one a line")
    return [hashed(key.encode()) for key in keys]


async def not_served(request: Request, error: Exception) -> Response:
    """Another path or method than those that there are."""
    assert isinstance(error, HTTPException)
    what, path = "no such path" if error.status_code == 404 else "another method is expected", request.scope["path"]
    refused = Refused(error.status_code, f"{what}: {request.method} {printable(path[:100])}")
    openai = path.startswith(("/v1/", "/models/"))
    return Response(refused.body(openai), error.status_code, error.headers, "application/json")
