"""A corpus on a Ray cluster and in an object store, and what survives when processes are killed."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sized
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pyarrow import fs

from mtl.display import counted
from mtl.errors import InputError
from mtl.rows.corpus import embed_corpus
from mtl.rows.on_ray import divide

TEXT = "the quick brown fox jumps over a lazy dog and runs far away from all of them"
WORDS = TEXT.split()


def write_corpus(folder: Path, files: int, rows: int) -> Path:
    """Files of so many rows, with ids that are unique among all of them."""
    folder.mkdir()
    for name in range(files):
        texts = [" ".join(WORDS[(name + row + i) % 17] for i in range(row % 12 + 1)) + f" {row}" for row in range(rows)]
        ids = [f"{name}-{row}" for row in range(rows)]
        pq.write_table(pa.table({"text": texts, "id": ids}), folder / f"{name}.parquet")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_actors_and_threads() -> None:
    assert divide([8, 8], None, None) == (2, 8)
    assert divide([2], 2, None) == (2, 1)
    assert divide([16, 8], 5, None) == (5, 4)
    assert divide([16, 8], None, 4) == (6, 4)
    assert divide([16, 8], 3, 5) == (3, 5)
    with pytest.raises(InputError, match="3 actors of 1 threads do not fit: the cluster has machines of 2 CPUs"):
        divide([2], 3, None)
    with pytest.raises(InputError, match="1 actors of 16 threads do not fit: the cluster has machines of 8, 2 CPUs"):
        divide([8, 2], None, 16)


def test_without_ray(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        InputError,
        match=r"an address needs Ray, which is not installed; in the clone of mtl: pip install -e '\.\[ray\]'",
    ):
        embed_corpus([tmp_path], tmp_path / "out", model=folder, address="auto")


@pytest.mark.slow
def test_addresses_where_no_cluster_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    source = write_corpus(tmp_path / "in", 1, 2)
    for address, message in (
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9: .*refused"),
        ("ray://head:10001", "expected auto, local, or host:port"),
        ("auto", "no Ray cluster (can be reached at 'auto': Could not find any|answers at .*refused)"),
    ):
        started = time.monotonic()
        with pytest.raises(InputError, match=message):
            embed_corpus([source], tmp_path / "out", model=folder, address=address)
        assert time.monotonic() - started < 30


def is_actor(process: Path) -> bool:
    try:
        return (process / "cmdline").read_bytes().startswith(b"ray::MapWorker")
    except OSError:
        return False


class Run:
    """The command on the tiny model, in a process group of its own."""

    def __init__(self, source: object, output: object, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "mtl", "embed-corpus", str(source), "--output", str(output)]
        self.process = subprocess.Popen(
            [*command, "--model", str(folder), *options], stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def kill(self) -> None:
        """Kill the process, and wait until Ray has ended the actors that it leaves behind, which may finish a file."""
        actors = self.actors()
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 60
        while any(is_actor(Path("/proc") / str(pid)) for pid in actors):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def finish(self) -> str:
        """What the command said, once it has ended well."""
        _, err = self.process.communicate(timeout=240)
        assert self.process.returncode == 0, err
        assert "Traceback" not in err
        return err

    def actors(self) -> list[int]:
        """The process ids of the actors of this run."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if is_actor(path) and self.is_ours(path):
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def is_ours(self, path: Path) -> bool:
        while int(path.name) > 1:
            if int(path.name) == self.process.pid:
                return True
            path = Path("/proc") / path.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1]
        return False


def wait_for(found: Callable[[], Sized], number: int, run: Run) -> None:
    """Until so many are found."""
    deadline = time.monotonic() + 180
    while len(found()) < number:
        assert run.process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_killing_one_process(folder: Path, tmp_path: Path) -> None:
    """kill -9 at several moments, each time going on; the end is the same to the byte, and no file is made twice."""
    source = write_corpus(tmp_path / "in", 6, 3000)
    embed_corpus([source], tmp_path / "whole", model=folder)
    out = tmp_path / "out"
    for files in (1, 3, 4):
        run = Run(source, out, folder)
        wait_for(lambda: list(out.glob("*.parquet")), files, run)
        time.sleep(0.02 * files)
        run.kill()
        assert run.process.returncode == -signal.SIGKILL
        before = {path.name: path.stat().st_ino for path in out.glob("*.parquet")}
    err = Run(source, out, folder).finish()
    assert counted(6 - len(before), "file") in err
    assert {name: (out / name).stat().st_ino for name in before} == before
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_killing_actors_and_the_driver(tmp_path: Path) -> None:
    """On Ray: an actor is killed, its file goes to another; the driver is killed, and the same command goes on."""
    pytest.importorskip("ray")
    model = Path("all-MiniLM-L6-v2")  # slow enough to be met in the middle of a file
    source = write_corpus(tmp_path / "in", 8, 500)
    embed_corpus([source], tmp_path / "whole", model=model)
    out, options = tmp_path / "out", ("--address", "local", "--actors", "2")

    def outputs() -> list[Path]:
        return list(out.glob("*.parquet"))

    run = Run(source, out, model, *options)
    wait_for(outputs, 1, run)
    actors = run.actors()
    assert len(actors) == 2
    os.kill(actors[0], signal.SIGKILL)
    wait_for(outputs, 4, run)
    run.kill()
    before = {path.name: path.stat().st_ino for path in outputs()}
    assert len(before) < 8
    run = Run(source, out, model, *options)
    wait_for(run.actors, 1, run)
    os.kill(run.actors()[0], signal.SIGKILL)  # this one, while it loads the model
    err = run.finish()
    assert counted(8 - len(before), "file") in err
    assert {name: (out / name).stat().st_ino for name in before} == before
    assert contents(out) == contents(tmp_path / "whole")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray cluster of this machine's two CPUs, as a user starts one; gives its address."""
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # so that nobody else reaches it
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--include-dashboard=false"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2", "--disable-usage-stats"]
    with (tmp_path / "ray.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in (tmp_path / "ray.log").read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


@pytest.mark.slow
def test_a_cluster_that_is_there(cluster: str, folder: Path, tmp_path: Path) -> None:
    """Found by address and by itself; the same files, and one line for a bad row on some machine."""
    source = write_corpus(tmp_path / "in", 3, 50)
    embed_corpus([source], tmp_path / "whole", model=folder, vectors="int8")
    err = Run(source, tmp_path / "out", folder, "--vectors", "int8", "--address", cluster).finish()
    assert "3 files, 150 rows" in err
    assert "(1 of them)" in err  # with both threads
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    (source / "bad.jsonl").write_text('{"text": null, "id": 1}\n')
    run = Run(source, tmp_path / "out", folder, "--vectors", "int8", "--address", "auto", "--threads", "1")
    _, err = run.process.communicate(timeout=240)
    assert run.process.returncode == 1
    assert "in/bad.jsonl: line 1: field 'text' is missing; expected a string" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_cluster_file_is_one() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    config = yaml.safe_load((Path(__file__).parents[2] / "docs" / "ray-cluster.yaml").read_text())
    util.validate_config(util.prepare_config(config))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, fs.FileSystem]]:
    """A bucket of an S3 server on this machine: a function from keys to URLs, and its file system."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("EC2_METADATA_DISABLED", "true")):
            monkeypatch.setenv(f"AWS_{name}", value)
        options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}"
        filesystem = fs.S3FileSystem(
            region="us-east-1", scheme="http", endpoint_override=f"{host}:{port}", allow_bucket_creation=True
        )
        filesystem.create_dir("bucket")
        yield f"s3://bucket/{{}}?{options}", filesystem
    finally:
        server.stop()


@pytest.mark.slow
def test_an_object_store(folder: Path, tmp_path: Path, bucket: tuple[str, fs.FileSystem]) -> None:
    """In and out by URL: the same bytes, resuming, and one line when something is wrong."""
    url, filesystem = bucket
    source = write_corpus(tmp_path / "in", 3, 40)
    (source / "more.jsonl").write_text('{"text": "a", "id": "m"}\n')
    fs.copy_files(str(source), "bucket/in", fs.LocalFileSystem(), filesystem)
    stored = [url.format("in")], url.format("out")
    done = embed_corpus(*stored, model=folder)
    assert (done.files, done.rows) == (4, 121)
    embed_corpus([source], tmp_path / "out", model=folder)
    for path in (tmp_path / "out").glob("*.parquet"):
        ours = pq.read_table(path)
        assert ours.equals(pq.read_table(f"bucket/out/{path.name}", filesystem=filesystem))
    assert embed_corpus(*stored, model=folder).there == 4
    filesystem.delete_file("bucket/out/1.parquet")
    assert embed_corpus(*stored, model=folder).files == 1
    cases = [
        (([url.format("no")], stored[1]), "s3://bucket/no is not there; expected a file or a folder"),
        (([url.format("in")], url.format("in/out")), "the output folder s3://bucket/in/out lies in the input"),
        (([url.replace("bucket", "absent", 1).format("in")], stored[1]), "s3://absent/in"),
        ((stored[0], url.replace("bucket", "absent", 1).format("out")), "s3://absent/out"),
    ]
    for places, message in cases:
        with pytest.raises(InputError, match=message) as raised:
            embed_corpus(*places, model=folder)
        assert "\n" not in str(raised.value)
        assert "endpoint" not in str(raised.value)
