"""Files and folders that appear whole or not at all, and locks on what one process at a time may write."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import mmap
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from mtl.errors import MtlError, one_line

PARTIAL = ".partial"  # how the names of unfinished files and folders end
DIRECT = getattr(os, "O_DIRECT", 0)  # Linux; see open(2)
BLOCK = 2**22  # bytes that are written at a time


def user_cache() -> Path:
    """This project's folder in the user's cache; where the user has none, one in which nothing can be kept."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtl"
    except RuntimeError:  # HOME is not set, and the system does not know the user
        return Path(os.devnull) / "mtl"


def expanded(name: str) -> Path:
    """A path with ``~`` as the home folder, where there is one."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def beside(path: Path, end: str, start: str = "") -> Path:
    """A file beside another, named after it: ``start``, its name, ``end``; shortened where that would be too long."""
    try:
        longest = os.pathconf(path.parent, "PC_NAME_MAX")
    except OSError:  # there is no such folder yet
        longest = 255
    name, room = os.fsencode(path.name), longest - len(os.fsencode(start + end))
    if len(name) <= room:
        return path.with_name(start + path.name + end)
    digest = hashlib.sha256(name).hexdigest()[:8]
    return path.with_name(f"{start}{name[: room - 9].decode(errors='ignore')}~{digest}{end}")


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on the disk before anything that follows."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there. It never raises, so that it may stand in a clean-up."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def unfinished(path: Path, token: str) -> Path:
    """What a file or folder is called until it is whole; ``token`` tells two that are written at once apart."""
    return beside(path, f".{token:8}{PARTIAL}", ".")


def finished(path: Path) -> Path:
    """What an ``unfinished`` file is called once it is whole; any other path is itself."""
    name = re.fullmatch(rf"\.(.+)\.[0-9a-f]{{8}}{re.escape(PARTIAL)}", path.name)
    return path.with_name(name[1]) if name else path


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left unfinished: of one name in a folder, or all in it and below.

    It is for the holder of the lock on that, since nobody else writes there.
    """
    own = unfinished(folder / name, "").name.removesuffix(PARTIAL).rstrip() if name else None
    pattern = f"{glob.escape(own) if own else '.*.'}{'[0-9a-f]' * 8}{PARTIAL}"
    for left in folder.glob(pattern) if name else folder.rglob(pattern):
        remove(left)


@contextmanager
def writing(path: Path, error: type[MtlError]) -> Iterator[None]:
    """Turn what goes wrong with files in the block into one line of the caller's type of error."""
    try:
        yield
    except (OSError, SafetensorError, UnicodeEncodeError) as problem:
        raise error(f"{path} cannot be written: {one_line(problem)}") from None


def reserve(path: Path) -> None:
    """Have the room that a file says it has, where the system can: of one with holes, a write to its mapping that the
    disk has no room for ends the process.

    Raises:
        OSError: there is no room.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # the file system cannot
                raise


def through_the_cache(file: int) -> bool:
    """Have what follows go through the page cache; gives whether it did not before."""
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, flags & ~DIRECT)
    return bool(flags & DIRECT)


def write_whole(file: int, content: memoryview) -> None:
    """Write all of it, where the file system refuses it past the page cache, then through it."""
    while content:
        try:
            content = content[os.write(file, content) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not through_the_cache(file):
                raise


def write_parts(path: Path, parts: Iterable[memoryview]) -> None:
    """Write a file part by part, past the page cache where the file system can.

    The file is synced soon after, and a copy of it in the page cache would cost more than all the rest: finding pages
    for it.
    """
    path.touch()  # with the mode that the umask gives
    try:
        file = os.open(path, os.O_WRONLY | os.O_TRUNC | DIRECT)
    except OSError:
        file = os.open(path, os.O_WRONLY | os.O_TRUNC)
    block = memoryview(mmap.mmap(-1, BLOCK))  # aligned to a page, as O_DIRECT requires
    filled = 0
    try:
        for part in parts:
            while part:
                size = min(len(part), BLOCK - filled)
                block[filled : filled + size] = part[:size]
                part, filled = part[size:], filled + size
                if filled == BLOCK:
                    write_whole(file, block)
                    filled = 0
        through_the_cache(file)  # O_DIRECT writes whole sectors, and the end is less
        write_whole(file, block[:filled])
    finally:
        os.close(file)


@contextmanager
def atomic_write(path: Path, error: type[MtlError], folder: bool = False) -> Iterator[Path]:
    """A new empty file (or folder) beside ``path`` to write to, which takes its name when the block ends.

    Until then, and if the block fails, what was under that name before is untouched. A folder only takes the
    name of an empty one. The mode is what the umask gives, whoever wrote the content; content is on the disk
    before the name is. A process that is killed leaves ``.NAME.xxxxxxxx.partial`` behind.

    Raises:
        error: it cannot be written, or something in the block could not be, with the system's reason.
    """
    temporary = unfinished(path, secrets.token_hex(4))
    try:
        with writing(path, error):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir() if folder else temporary.touch()
            mode = temporary.stat().st_mode & 0o777
            yield temporary
            temporary.chmod(mode)
            for each in [*temporary.rglob("*"), temporary]:
                sync(each)
            temporary.replace(path)
            sync(path.parent)
    finally:
        remove(temporary)


def lock_path(path: Path) -> Path:
    """Where the lock of a folder, or of a file, is."""
    return path / ".lock" if path.is_dir() else beside(path, ".lock")


@contextmanager
def lock(path: Path, error: type[MtlError]) -> Iterator[None]:
    """Keep other processes, and other threads, from locking the same file or folder.

    The lock is the kernel's, on a file that holds our process id. It ends with the process however that ends, so a lock
    file that was left behind is stale, and taken over. Where another process holds it, or it cannot be written, that is
    an ``error``.
    """
    target = lock_path(path)
    file = None
    while file is None:
        with writing(path, error):
            file = open_locked(target)
        if file is None:
            with suppress(FileNotFoundError):  # its holder removed it meanwhile: try again
                holder = target.read_text().strip() or "unknown"
                raise error(f"{path} is being written by process {holder}; wait until it ends, or choose another name")
    try:
        yield
    finally:
        remove(target)  # while it is still ours
        os.close(file)


def open_locked(path: Path) -> int | None:
    """A descriptor of the lock file, locked, or None where another has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    os.ftruncate(file, 0)
                    os.write(file, f"{os.getpid()}\n".encode())
                    return file
        except BlockingIOError:
            os.close(file)
            return None
        os.close(file)  # its last holder removed it meanwhile: try again
