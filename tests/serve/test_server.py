"""The server among clients that are slow, silent, many, or gone, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtl import SentenceEncoder
from mtl.cli import main
from mtl.serve.contracts import Limits
from mtl.serve.server import Patient, listening

from .conftest import Client

HEAD = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@contextlib.contextmanager
def connected(client: Client, *parts: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as raw:
        for part in parts:
            raw.sendall(part)
        yield raw


def test_answers_wait_for_no_acknowledgement() -> None:
    """Head and body of an answer are written apart: with Nagle's algorithm, each took 40 ms on a kept connection."""

    async def nodelay() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        at = listening("127.0.0.1", 0)
        async with await asyncio.start_server(accepted, sock=at):
            _, writer = await asyncio.open_connection(*at.getsockname())
            writer.close()
            return await found

    assert asyncio.run(nodelay())


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def gate(serving: Callable[..., Client]) -> Iterator[tuple[Client, threading.Event, threading.Event]]:
    """A server whose worker waits: the client, what opens the gate, and what says that the worker stands before it."""
    client = serving(limits=Limits(queued_tokens=40, answer_seconds=20, stuck_seconds=0.2))
    go, entered = threading.Event(), threading.Event()
    compute = client.service.queue.compute

    def slowly(program: str, rows: object) -> object:
        entered.set()
        assert go.wait(20)
        return compute(program, rows)

    client.service.queue.compute = slowly
    yield client, go, entered
    go.set()


def test_a_body_that_does_not_come(serving: Callable[..., Client]) -> None:
    client = serving(limits=Limits(body_seconds=0.05))
    with connected(client, HEAD, b'Content-Length: 20\r\n\r\n{"inp') as raw:
        assert raw.recv(1000).startswith(b"HTTP/1.1 408")
    assert client.post("/embed", {"inputs": "a"}).status == 200
    assert client.service.held == client.service.requests == 0


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have connections be patient for a tenth of a second only."""
    made = Patient.__init__

    def impatient(self: Patient, *arguments: Any, **settings: Any) -> None:
        made(self, *arguments, **settings)
        self.patience = 0.1

    monkeypatch.setattr(Patient, "__init__", impatient)


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the system keep little of what is sent, so that it waits in the server."""
    made = Patient.connection_made

    def connection_made(self: Patient, transport: asyncio.Transport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        made(self, transport)

    monkeypatch.setattr(Patient, "connection_made", connection_made)


def test_connections_that_say_nothing_or_too_much(
    serving: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serving()
    hurry(monkeypatch)
    for parts in ((), (HEAD,), (b"\r\n",), (HEAD, b"Content-Length: 20\r\n\r\n{")):
        with connected(client, *parts) as raw, contextlib.suppress(ConnectionResetError):
            assert raw.recv(1000) == b""
    with connected(client, HEAD) as raw, contextlib.suppress(ConnectionError):
        for _ in range(100):
            raw.sendall(b"X-Long: " + b"x" * 1000 + b"\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 400")
    whole = HEAD + b'Content-Length: 15\r\n\r\n{"inputs": "a"}'
    with connected(client, whole + whole) as raw:  # one behind the other
        wait_for(lambda: client.service.metrics.values.get("te_embed_success", {}).get("") == 2)
        assert raw.recv(100_000).count(b"HTTP/1.1 200") >= 1


@pytest.mark.parametrize(("begin", "more"), [(b"0\r\n", b"x: " + b"y" * 1000 + b"\r\n"), (b"1;", b"x" * 1000)])
def test_fields_behind_a_body_that_never_end(serving: Callable[..., Client], begin: bytes, more: bytes) -> None:
    """Or words beside the size of a part of it: nobody counts these as the head's or the body's."""
    client = serving()
    start = HEAD + b'Transfer-Encoding: chunked\r\n\r\nf\r\n{"inputs": "a"}\r\n'
    with connected(client, start, begin) as raw, pytest.raises(ConnectionError):
        raw.sendall(more * 30_000)
    wait_for(lambda: client.service.held == 0)


def test_clients_that_would_rather_speak_http_2(serving: Callable[..., Client]) -> None:
    """Java's client asks with each request; its body is the request's all the same, however it comes."""
    client = serving()
    expected = client.post("/embed", {"inputs": "a b"}).body
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    body = b'{"inputs": "a b"}'
    plain = HEAD + wish + b"Content-Length: 17\r\n\r\n" + body
    chunked = HEAD + wish + b"Transfer-Encoding: chunked\r\n\r\n11\r\n" + body + b"\r\n0\r\n\r\n"
    for parts in ((plain,), (chunked,), (plain[:-17], body), (plain[:80], plain[80:]), (plain + chunked + plain,)):
        times = b"".join(parts).count(b"POST ")
        with connected(client, *parts) as raw:
            found = b""
            while found.count(expected) < times:
                more = raw.recv(100_000)
                assert more, found
                found += more
            assert found.count(b"HTTP/1.1 200") == times
    with connected(client, b"CONNECT /embed HTTP/1.1\r\nHost: x\r\n\r\n") as raw:
        assert raw.recv(1000).startswith(b"HTTP/1.1 405")


def test_a_compressed_body(serving: Callable[..., Client]) -> None:
    reply = serving().post("/embed", b"x", **{"Content-Encoding": "gzip"})
    assert reply.status == 415
    assert reply.json["error"] == "Content-Encoding is 'gzip'; expected the JSON as it is"


def test_a_body_that_is_cut_off(serving: Callable[..., Client]) -> None:
    client = serving()
    for _ in range(3):
        with connected(client, HEAD, b'Content-Length: 20\r\n\r\n{"inp'):
            wait_for(lambda: client.service.held == 5)
        wait_for(lambda: client.service.held == 0)
    assert client.service.metrics.values["te_request_failure"] == {'err="dropped"': 3}
    assert client.service.held == 0


def test_bodies_that_do_not_come_take_no_place_from_others(serving: Callable[..., Client]) -> None:
    """Neither of the requests that may wait, nor of the bytes that may be held."""
    client = serving(limits=Limits(requests=1, body_bytes=1000, held_bytes=1000))
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connected(client, HEAD, b'Content-Length: 900\r\n\r\n{"inp'))
        wait_for(lambda: client.service.held == 15)
        assert client.post("/embed", {"inputs": "a"}).status == 200
        assert client.post("/embed", {"inputs": "a" * 980}).status == 429


def test_answers_that_nobody_reads(serving: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept until they are read or their connection ends, and take no place from others."""
    client = serving(limits=Limits(held_bytes=10_000, unread_bytes=10_000))
    unread = client.service.unread
    body = json.dumps({"inputs": ["a b c"] * 600}).encode()
    whole = HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    expected = client.post("/embed", body).body
    narrow(monkeypatch)
    for reads in (True, False):
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.settimeout(10)
            raw.connect(("127.0.0.1", client.port))
            raw.sendall(whole)
            wait_for(lambda: len(unread) == 1)
            (transport,) = unread
            left = transport.get_write_buffer_size()
            assert left > 10_000
            assert client.post("/embed", {"inputs": "a"}).status == 200
            if not reads:  # for as long as a connection has patience
                protocol = transport.get_protocol()
                protocol.loop.call_soon_threadsafe(protocol.check_read, left)
                wait_for(lambda: not unread)
            said = b""
            with contextlib.suppress(ConnectionResetError):
                while not said.endswith(expected) and (more := raw.recv(4096)):
                    said += more
            assert said.endswith(expected) is reads
        wait_for(lambda: not unread)


class Transport:
    """A connection with so many bytes that its client has still to read."""

    def __init__(self, left: int) -> None:
        self.left, self.aborted = left, False

    def get_write_buffer_size(self) -> int:
        return self.left

    def abort(self) -> None:
        self.aborted = True


def test_who_has_the_most_to_read_is_sent_away(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    service = client.service
    monkeypatch.setattr(service, "unread", set())
    monkeypatch.setattr(service, "limits", dataclasses.replace(service.limits, unread_bytes=100))
    steady, *slow = made = [Transport(left) for left in (20, 30, 40, 50, 60, 70)]
    for transport in made:
        service.keep_unread(transport)
    assert [transport.aborted for transport in made] == [False, False, False, True, True, True]
    slow[0].left, slow[1].left = 10, 5
    assert service.unread == {steady, *slow[:2]}
    steady.left = 85
    service.keep_unread(steady)  # what each has left now is what counts
    assert not steady.aborted


def test_an_answer_over_the_limit_is_read_where_it_is_alone(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    service, alone = client.service, Transport(300)
    monkeypatch.setattr(service, "unread", set())
    monkeypatch.setattr(service, "limits", dataclasses.replace(service.limits, unread_bytes=100))
    service.keep_unread(alone)
    assert not alone.aborted
    service.keep_unread(small := Transport(10))
    assert (alone.aborted, small.aborted, service.unread) == (True, False, {small})


def test_a_refusal_is_read_behind_a_large_body(serving: Callable[..., Client]) -> None:
    """The rest of the body is read and thrown away: else the client would learn of a broken connection only."""
    client = serving(limits=Limits(body_bytes=1000))
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}):
        assert client.post("/embed", b" " * (20 << 20), **headers).status in (413, 415)
    assert client.service.held == 0


def test_the_same_connection_after_a_refusal(serving: Callable[..., Client]) -> None:
    client = serving(limits=Limits(body_bytes=1000))
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=10)
    good = json.dumps({"inputs": "a b"})
    for path, body, kind, status in (
        ("/embed", "{", "application/json", 400),
        ("/embed", '{"inputs": 3}', "application/json", 422),
        ("/embed", " " * 5000, "application/json", 413),
        ("/embed", good, "text/plain", 415),
        ("/nope", good, "application/json", 404),
    ):
        for ask, expected in (((path, body, kind), status), (("/embed", good, "application/json"), 200)):
            connection.request("POST", ask[0], ask[1], {"Content-Type": ask[2]})
            reply = connection.getresponse()
            reply.read()
            assert reply.status == expected
    connection.close()


def test_http_1_0_and_half_closed_connections(serving: Callable[..., Client]) -> None:
    client = serving()
    whole = HEAD + b'Content-Length: 15\r\n\r\n{"inputs": "a"}'
    with connected(client, whole.replace(b"HTTP/1.1", b"HTTP/1.0")) as raw:
        said = b"".join(iter(lambda: raw.recv(10_000), b""))  # it ends with the connection
        assert said.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in said
    with connected(client, whole) as raw, contextlib.suppress(ConnectionResetError):
        raw.shutdown(socket.SHUT_WR)  # who ends the connection has left, as far as anybody can tell
        assert raw.recv(10_000)[:12] in (b"", b"HTTP/1.1 200")
    wait_for(lambda: client.service.queue.tokens == client.service.requests == client.service.held == 0)
    for bad in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n",
                b"\x16\x03\x01\x02\x00", b"POST /embed HTTP/1.1\r\nContent-Length: -1\r\n\r\n"):  # fmt: skip
        with connected(client, bad) as raw:
            assert raw.recv(1000)[:12] == b"HTTP/1.1 400"


def test_whoever_leaves_is_not_computed_for(gate: tuple[Client, threading.Event, threading.Event]) -> None:
    client, go, entered = gate
    body = json.dumps({"inputs": ["b", "c d e"]}).encode()
    whole = HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    queue = client.service.queue
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/embed", {"inputs": "a"})
        assert entered.wait(10)
        with connected(client, whole):
            wait_for(lambda: queue.tokens == 11)
        wait_for(lambda: queue.tokens == 3)
        go.set()
        assert first.result().status == 200
    wait_for(lambda: client.service.requests == 0)
    assert client.service.metrics.values["te_request_failure"] == {'err="dropped"': 1}


def test_a_full_queue_and_a_stuck_worker(gate: tuple[Client, threading.Event, threading.Event]) -> None:
    client, go, entered = gate
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/embed", {"inputs": "a"})
        assert entered.wait(10)
        second = pool.submit(client.post, "/embed", {"inputs": ["b", "c", "d", "e", "f", "g", "h", "i", "j"]})
        wait_for(lambda: client.service.queue.tokens == 30)
        refused = client.post("/embed", {"inputs": ["k", "l", "m", "n"]})
        assert refused.status == 429
        assert refused.json["error_type"] == "Overloaded"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        wait_for(lambda: client.get("/health").status == 503)
        assert "one turn" in client.get("/health").json["error"]
        stuck = client.post("/embed", {"inputs": "k"})
        assert stuck.status == 503
        assert stuck.headers["retry-after"] == "10"
        go.set()
        assert first.result().status == second.result().status == 200
    assert client.get("/health").status == 200


def test_an_answer_that_takes_too_long(gate: tuple[Client, threading.Event, threading.Event]) -> None:
    client, go, _ = gate
    object.__setattr__(client.service.limits, "answer_seconds", 0.05)
    assert client.post("/embed", {"inputs": "a"}).status == 503
    go.set()
    wait_for(lambda: client.service.queue.tokens == 0)


def test_a_dead_worker(serving: Callable[..., Client], caplog: pytest.LogCaptureFixture) -> None:
    client = serving()

    def dies(program: str, rows: object) -> None:
        raise SystemExit

    client.service.queue.compute = dies
    assert client.post("/embed", {"inputs": "a"}).status == 503
    assert client.get("/health").status == 503
    assert client.post("/embed", {"inputs": "a"}).status == 503


def words(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 18))) for _ in range(count)]


def test_the_same_bytes_under_load(serving: Callable[..., Client], encoder: SentenceEncoder) -> None:
    """Many clients with other texts, some of which are over the limit, malformed, or leave before the answer."""
    client = serving()
    texts = words(300)
    limit = encoder.tokenizer.max_length
    expected = encoder.encode(texts, normalize=True, overflow="truncate")

    def ask(i: int) -> None:
        if i % 10 == 0:
            with connected(client, HEAD, b'Content-Length: 15\r\n\r\n{"inputs": "a"}'):
                return
        if i % 17 == 0:
            assert client.post("/embed", b"{").status == 400
        several = list(range(i, min(i + i % 5 + 1, len(texts))))
        reply = client.post("/embed", {"inputs": [texts[j] for j in several]})
        if any(len(encoder.tokenizer.ids([texts[j]])[0]) + 2 > limit for j in several):
            assert reply.status == 422
        else:
            assert reply.status == 200
            assert np.array(reply.json, np.float32).tobytes() == expected[several].tobytes()

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(ask, range(len(texts))))
    wait_for(lambda: client.service.requests == 0)
    assert client.service.queue.tokens == client.service.held == 0


class Process:
    """`mtl serve` as a process."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "mtl", "serve", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stderr
        self.said = ""
        while not (found := re.search(r"serving (\S+) at http://[\d.]+:(\d+)", self.said)):
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line
        self.name, self.port = found[1], int(found[2])

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        return self.process.wait(30), self.process.communicate()[1]


def until_refused(port: int, text: str, outcomes: list[object], expected: bytes, on_answer: threading.Event) -> None:
    """Ask over one connection after another, until nobody is there; a request that was sent whole gets an answer."""
    body = json.dumps({"inputs": text, "normalize": False}).encode()
    while True:
        client = Client(None, port)  # type: ignore[arg-type]
        try:
            reply = client.post("/embed", body)
        except ConnectionRefusedError:
            return
        except (ConnectionError, OSError) as error:
            outcomes.append(error)
            return
        if reply.status == 503:
            assert reply.headers["retry-after"] == "1"
            return
        outcomes.append(reply.status == 200 and np.array(reply.json, np.float32).tobytes() == expected)
        on_answer.set()


def test_sigterm_under_load_loses_nothing(folder: Path) -> None:
    server = Process("--model", folder, "--log-json")
    encoder = SentenceEncoder.from_pretrained(folder)
    outcomes: list[object] = []
    answered = threading.Event()
    threads = []
    for text in ("a b", "c", "d e f", "g"):
        arguments = (server.port, text, outcomes, encoder.encode([text]).tobytes(), answered)
        threads.append(threading.Thread(target=until_refused, args=arguments))
        threads[-1].start()
    assert answered.wait(30)
    code, said = server.end()
    for thread in threads:
        thread.join(30)
    assert code == 0, said
    assert "every accepted request was answered" in said
    assert outcomes
    assert all(outcome is True for outcome in outcomes)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached by others; give --api-keys FILE, or --without-key"),
        (["--host", "127.0.0.1.example.invalid"], "can be reached by others; give --api-keys FILE, or --without-key"),
        (["--api-keys", "nowhere"], "nowhere cannot be read: No such file"),
        (["--api-keys", "empty"], "has none; expected one a line"),
        (["--model", "nowhere/at-all/model"], "nowhere"),
        (["--host", "no.such.host.invalid"], "--api-keys"),
        (["--host", "no.such.host.invalid", "--without-key"], "cannot listen at no.such.host.invalid"),
        (["--precision", "fp16"], "fp16"),
    ],
)
def test_the_command_refuses_what_is_unsafe_or_impossible(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("# nobody\n")
    with pytest.raises(SystemExit) as stop:
        main(["serve", "--port", "0", *arguments])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_the_images_health_check(client: Client, tmp_path: Path) -> None:
    """It asks at the port that the server was told; a container that does something else is healthy."""
    dockerfile = (Path(__file__).parents[2] / "Dockerfile").read_text()
    (command,) = re.findall(r"^HEALTHCHECK .*CMD ((?:.*\\\n)*.*)", dockerfile, re.MULTILINE)
    command = re.sub(r"\\\n\s*", "", command).replace("python -c", f"{sys.executable} -c")
    said = tmp_path / "cmdline"
    for arguments, healthy in (
        (["mtl", "serve", "--port", str(client.port)], True),
        (["mtl", "serve", f"--port={client.port}", "--host", "0.0.0.0"], True),
        (["mtl", "serve", "--port=1"], False),
        (["mtl", "embed", "serve it"], True),
    ):
        said.write_text("".join(f"{argument}\0" for argument in arguments))
        ran = subprocess.run(["sh", "-c", command.replace("/proc/1/cmdline", str(said))], capture_output=True)
        assert (ran.returncode == 0) is healthy, (arguments, ran.stderr)


def test_a_port_that_is_taken(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--port", str(client.port)])
    assert "Address already in use" in capsys.readouterr().err


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("mtl.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "orjson", None)
    with pytest.raises(SystemExit):
        main(["serve"])
    assert "in the clone of mtl: pip install -e '.[serve]'" in capsys.readouterr().err


@pytest.mark.slow
def test_twenty_terminations_lose_nothing(folder: Path) -> None:
    for _ in range(19):  # and the one that always runs
        test_sigterm_under_load_loses_nothing(folder)


@pytest.mark.slow
def test_killed_it_starts_again(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for _ in range(2):
        server = Process("--model", folder)
        assert Client(None, server.port).post("/embed", {"inputs": "a"}).status == 200  # type: ignore[arg-type]
        assert server.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
