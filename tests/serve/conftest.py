"""Servers in a thread of the test's process, over tiny random models, and a client that sends what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS, randomized

pytest.importorskip("uvicorn")

from mtl import MultiTaskModel, SentenceEncoder, TaskSpec
from mtl.checkpoints.load import Checkpoint
from mtl.checkpoints.tokenizer import wordpiece
from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert
from mtl.serve.app import Service
from mtl.serve.contracts import Limits
from mtl.serve.model import Served
from mtl.serve.routes import application
from mtl.serve.server import configured, listening, until_stopped

TASKS = (
    TaskSpec("topic", ("x", "y", "z"), pooling=("max", "cls")),
    TaskSpec("tags", ("p", "q"), kind="multi-label", pooling=("attention",), head="distilbert"),
    TaskSpec("score", kind="regression"),
)


@dataclasses.dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Sends requests to a server, each over a connection of its own."""

    def __init__(self, service: Service, port: int) -> None:
        self.service, self.port = service, port
        self.url = f"http://127.0.0.1:{port}"

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.send("GET", path, **headers)

    def post(self, path: str, content: object, **headers: str) -> Reply:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.send("POST", path, body, **{"Content-Type": "application/json", **headers})


@contextlib.contextmanager
def running(service: Service, origins: Sequence[str] = ()) -> Iterator[Client]:
    """A server in a thread."""
    server = configured(application(service, origins), service, drain_seconds=5)
    at, ready = listening("127.0.0.1", 0), threading.Event()
    port = at.getsockname()[1]
    thread = threading.Thread(target=lambda: asyncio.run(until_stopped(server, at, ready.set)))
    thread.start()
    try:
        assert ready.wait(20)
        yield Client(service, port)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def letters(folder: Path) -> Checkpoint:
    """As the fixture ``checkpoint``, for a whole module."""
    (folder / "letters.txt").write_text("\n".join(WORDS) + "\n")
    config = EncoderConfig(
        vocab_size=len(WORDS), max_position_embeddings=16, n_layers=2, n_heads=3, dim=12, hidden_dim=20
    )
    prompts = {"query": "q "}
    made = Checkpoint(randomized(DistilBert(config)), wordpiece(folder / "letters.txt", {}), 16)
    return dataclasses.replace(made, prompts=prompts)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    return SentenceEncoder.from_checkpoint(letters(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> MultiTaskModel:
    embedder = SentenceEncoder.from_checkpoint(letters(tmp_path_factory.mktemp("heads")))
    return randomized(MultiTaskModel(embedder, TASKS))


@pytest.fixture(scope="session")
def client(encoder: SentenceEncoder) -> Iterator[Client]:
    """A server of the encoder alone, with small limits."""
    limits = Limits(texts=40, body_bytes=20_000, queued_tokens=4000)
    with running(Service(Served(encoder, "tiny"), limits)) as found:
        yield found


@pytest.fixture(scope="session")
def headed(heads: MultiTaskModel) -> Iterator[Client]:
    """A server of the model with heads."""
    with running(Service(Served(heads, "heads"))) as found:
        yield found


@pytest.fixture
def serving(encoder: SentenceEncoder) -> Iterator[Callable[..., Client]]:
    """Starts a server with settings of its own."""
    with contextlib.ExitStack() as stack:

        def start(origins: Sequence[str] = (), **settings: Any) -> Client:
            return stack.enter_context(running(Service(Served(encoder, "tiny"), **settings), origins))

        yield start


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> MultiTaskModel:
    embedder = SentenceEncoder.from_checkpoint(letters(tmp_path_factory.mktemp("classifier")))
    return randomized(MultiTaskModel(embedder, TASKS[:1]))


@pytest.fixture(scope="session")
def one_head(classifier: MultiTaskModel) -> Iterator[Client]:
    """A server of a model with one head."""
    with running(Service(Served(classifier, "classifier"))) as found:
        yield found


@pytest.fixture(scope="session")
def tagging(tmp_path_factory: pytest.TempPathFactory) -> MultiTaskModel:
    embedder = SentenceEncoder.from_checkpoint(letters(tmp_path_factory.mktemp("tagging")))
    return randomized(MultiTaskModel(embedder, [TASKS[0], TaskSpec("ner", ("PER", "LOC"), kind="tokens")]))
