"""Whole or not at all; one writer at a time."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mtl.disk import atomic_write, beside, lock, lock_path, sweep, write_parts
from mtl.errors import CheckpointError, InputError


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path, InputError) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(TypeError, match="data must be str"), atomic_write(path, InputError) as temporary:
        temporary.write_text(None)
    assert path.read_text() == "one"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "run", CheckpointError, folder=True) as temporary:
        (temporary / "a").write_text("one")
    assert (tmp_path / "run" / "a").read_text() == "one"
    message = "run cannot be written: Directory not empty"
    with pytest.raises(CheckpointError, match=message), atomic_write(tmp_path / "run", CheckpointError, folder=True):
        pass
    assert os.listdir(tmp_path) == ["run"]


def test_every_file_of_a_folder_is_on_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is synced before the folder has its name, and the name after that: a power cut leaves no empty files."""
    synced, fsync = [], os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with atomic_write(tmp_path / "run", CheckpointError, folder=True) as temporary:
        (temporary / "deep").mkdir()
        for name in ("model.safetensors", "deep/config.json"):
            (temporary / name).write_text("one")
    assert set(synced[:3]) == {"model.safetensors", "deep", "config.json"}
    assert synced[3:] == [temporary.name, tmp_path.name]


@pytest.mark.parametrize("size", [230, 238, 250, 255])
@pytest.mark.parametrize("letter", ["a", "é"])
def test_names_as_long_as_the_file_system_takes(tmp_path: Path, size: int, letter: str) -> None:
    """What is written beside them for a while has a shorter one; what a killed process left is found under it."""
    name = letter * (size // len(letter.encode())) + "x" * (size % len(letter.encode()))
    with lock(tmp_path / name, InputError), atomic_write(tmp_path / name, InputError) as temporary:
        temporary.write_text("one")
        left = temporary.with_name(temporary.name[:-16] + "01234567.partial")
        left.touch()
        sweep(tmp_path, name)
        assert not temporary.exists()
        assert not left.exists()
        temporary.write_text("two")
    assert (tmp_path / name).read_text() == "two"
    assert os.listdir(tmp_path) == [name]
    other = "a" * 254
    assert beside(tmp_path / f"{other}b", ".lock") != beside(tmp_path / f"{other}c", ".lock")


def test_the_umask_decides_the_mode(tmp_path: Path) -> None:
    """Whatever the writer makes of it: safetensors gives a file to its owner alone."""
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.safetensors", InputError) as temporary:
            save_file({"x": torch.zeros(2)}, temporary)
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("refused", ["open", "write", "nothing"])
def test_files_are_written_past_the_page_cache_or_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Some file systems refuse O_DIRECT when a file is opened, others when it is written to; some write less."""
    monkeypatch.setattr("mtl.disk.BLOCK", 8192)
    opened, written = os.open, os.write

    def open_file(path: Path, flags: int, *mode: int) -> int:
        if refused == "open" and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, *mode)

    def write(file: int, content: memoryview) -> int:
        if refused == "write" and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return written(file, content[:4096])

    monkeypatch.setattr("os.open", open_file)
    monkeypatch.setattr("os.write", write)
    parts = [os.urandom(size) for size in (3, 8192, 0, 20000, 8192 * 2 - 28195 % 8192, 77)]
    write_parts(tmp_path / "a", map(memoryview, parts))
    assert (tmp_path / "a").read_bytes() == b"".join(parts)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a.txt cannot be written: No space left on device$"):  # noqa: SIM117
        with atomic_write(tmp_path / "a.txt", InputError):
            Path("/dev/full").write_text("x")
    with pytest.raises(InputError, match=r"a.txt cannot be written: No space left on device$"):  # noqa: SIM117
        with atomic_write(tmp_path / "a.txt", InputError):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert os.listdir(tmp_path) == []


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    """Of one name, or all in a folder and below; never what another is writing beside it, or a user's own file."""
    others = ["a[1].txt", ".a[1].txt.partial", ".a[1].txt.b.txt.0123abcd.partial", ".a1.txt.0123abcd.partial"]
    for name in (*others, ".a[1].txt.0123abcd.partial"):
        (tmp_path / name).touch()
    (tmp_path / "deep" / ".a[1].txt.0123abcd.partial").mkdir(parents=True)
    sweep(tmp_path, "a[1].txt")
    assert set(os.listdir(tmp_path)) == {*others, "deep"}
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".a[1].txt.partial", "a[1].txt", "deep"]
    assert os.listdir(tmp_path / "deep") == []


HOLD = """
import sys, pathlib, mtl.disk, mtl.errors
with mtl.disk.lock(pathlib.Path(sys.argv[1]), mtl.errors.InputError):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("name", ["out.npy", "."])
def test_one_writer_at_a_time(tmp_path: Path, name: str) -> None:
    """A second is told who writes; after kill -9 the lock that is left is taken over."""
    path = tmp_path / name
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    message = f"is being written by process {holder.pid}; wait until it ends"
    with pytest.raises(InputError, match=message), lock(path, InputError):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert lock_path(path).exists()
    with lock(path, InputError), pytest.raises(InputError, match=f"by process {os.getpid()}"), lock(path, InputError):
        pass
    assert os.listdir(tmp_path) == []


def test_many_who_want_one_lock(tmp_path: Path) -> None:
    """Whoever does not get it is told so in one line, though its holder may leave at that very moment."""
    held, others, failed = [], [], []

    def want() -> None:
        for _ in range(1000):
            try:
                with lock(tmp_path / "a", InputError):
                    held.append(1)
            except InputError as error:
                others.append(str(error))
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(held) + len(others) == 4000
    assert all("is being written by process" in line for line in others)
    assert os.listdir(tmp_path) == []
