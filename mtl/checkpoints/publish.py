"""From a model's folder to the Hugging Face hub: its own files in one commit, nothing else that lies beside them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict, Unpack

from mtl import checkpoints
from mtl.checkpoints.card import PLACEHOLDER, README, RESULTS, card, public_name, results_of
from mtl.checkpoints.fetch import HUB_ID, OF_ALL, OF_PARTS, fetch, quiet_hub, status_of, weight_files
from mtl.checkpoints.files import inside, read_json
from mtl.checkpoints.load import BRANCHES, TASKS, load
from mtl.checkpoints.modules import read_modules
from mtl.errors import InputError, MtlError, WeightsError, check_flags, one_line, shown

GRAPHS = "onnx"  # the folder of ONNX graphs
# What a model is made of beside its settings and vocabularies, here, for sentence-transformers, transformers and ONNX
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
LICENSE = "LICENSE"
WHOLE = (*OF_ALL, BRANCHES, README, LICENSE)
OF_GRAPHS = ("model.onnx", "model_*.onnx", "model*.onnx_data", "model*.onnx.data")
VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")  # whose strings are tokens


class PushOptions(TypedDict, total=False):
    """private: Nobody else sees it. create_pr: Propose the files in a pull request. revision: The branch to commit to;
    it is made where there is none. commit_message: By default, one that names mtl. token: By default, that of
    ``hf auth login`` or of HF_TOKEN."""

    private: bool
    create_pr: bool
    revision: str | None
    commit_message: str
    token: str | None


def page(folder: Path, name: str | None = None) -> str:
    """The README.md of a model's folder, made anew from its files and its run's; by default, it has the folder's name.

    Raises:
        ConfigError, WeightsError: it is no model of ours, or a file of its run is damaged.
    """
    checkpoint = load(folder)
    classes = checkpoint.origin.config.get("architectures")
    first = str(classes[0]) if classes and isinstance(classes, list) else ""
    try:
        return card(checkpoint, name or public_name(folder), first, results_of(folder, checkpoint.tasks))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        given = f"{folder}: {TASKS}, or its run's {RESULTS}, is damaged ({type(error).__name__}: {one_line(error)})"
        raise WeightsError(f"{given}; save the model again, or train with --resume") from error


def model_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The files of a folder that are the model's, by their names in it, and the names of others beside them.

    Raises:
        ConfigError, WeightsError: its modules.json is none of ours; or a link leads out of the folder.
    """
    parts = {PurePosixPath(place).as_posix() for _, place in read_modules(folder)}
    weights = {PurePosixPath(name).as_posix() for name in weight_files(folder)}
    linked = (path for place in (*parts, GRAPHS) for path in (folder / place).glob("*"))  # rglob follows no link
    found = {path.relative_to(folder).as_posix() for path in (*folder.rglob("*"), *linked) if path.is_file()}
    ours = {name: inside(folder, name) for name in sorted(found) if name in weights or is_models(name, parts)}
    return ours, sorted(found - ours.keys())


def is_models(name: str, parts: Container[str], weights: Sequence[str] = ()) -> bool:
    """Whether a file, by its name in the folder, is of a model with these parts, ``.`` among them for the folder.

    ``weights`` are what a part's weights may be called.
    """
    path = PurePosixPath(name)
    place = path.parent.as_posix()
    known = (*{".": WHOLE, GRAPHS: OF_GRAPHS}.get(place, ()), *((*OF_PARTS, *weights) if place in parts else ()))
    return any(fnmatchcase(path.name, each) for each in known)


def check_public(files: Mapping[str, Path]) -> None:
    """That no setting of a model names a path of this machine.

    Raises:
        WeightsError: one does.
    """
    for name, path in files.items():
        if path.suffix == ".json" and path.name not in VOCABULARIES:
            for said in strings_in(read_json(path)):
                if is_own_path(said):
                    given = f"{name} names {shown(said)}, a path of this machine, which others would read"
                    raise WeightsError(f"{given}; save it with SentenceEncoder or MultiTaskModel, and push that")


def strings_in(content: Any) -> Iterator[str]:
    """All strings in the content of a JSON file, but for the names of fields."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, (dict, list)):
        for each in content.values() if isinstance(content, dict) else content:
            yield from strings_in(each)


def is_own_path(text: str) -> bool:
    """Whether it is the path of something on this machine, or of something that was in the home folder."""
    path = Path(text)
    try:
        home = Path.home()
        of_home = len(home.parts) > 1 and path.is_relative_to(home)
        return path.is_absolute() and len(path.parts) > 2 and (of_home or path.exists())
    except (OSError, RuntimeError, ValueError):  # too long, no home, a null byte
        return False


def push(model: str | Path, repo_id: str, **options: Unpack[PushOptions]) -> tuple[str, list[str]]:
    """Commit the files of a model, or of a run's model, to a repository of the hub, which is made if need be.

    Files of a model that the repository has and the folder has not are deleted in the same commit. Gives the commit's
    address, or the pull request's, and the names of the files in the folder that are no part of the model and stay.

    Raises:
        InputError: the name or the token cannot be one.
        ConfigError, WeightsError: it is no model that can be loaded, or the hub does not take it.
    """
    check_options(repo_id, options)
    folder = fetch(str(model))
    made = page(folder, repo_id.rpartition("/")[2])
    files, others = model_files(folder)
    check_public(files)
    try:
        text = files[README].read_bytes().decode() if README in files else made
    except UnicodeDecodeError as error:
        raise WeightsError(f"{files[README]} is no page of UTF-8 ({error}); convert it, or delete it") from None
    sent = {**files, README: text.replace(PLACEHOLDER, repo_id).encode()}
    hub = quiet_hub()
    try:
        return commit(hub, repo_id, sent, options), others
    except MtlError:
        raise
    except Exception as error:
        raise refused(repo_id, error, options.get("token") or hub.get_token()) from None


def commit(hub: Any, repo_id: str, files: dict[str, Any], options: PushOptions) -> str:
    """One commit that makes a repository's model these files; gives its address."""
    api = hub.HfApi(token=options.get("token"), library_name="mtl")
    private, revision = bool(options.get("private")), options.get("revision")
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private and not api.model_info(repo_id).private:
        raise WeightsError(
            f"{repo_id} is on the hub already, and public; make it private there, or choose another name"
        )
    if revision and not options.get("create_pr") and not revision.startswith("refs/"):  # as a pull request's, refs/pr/1
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    there = api.list_repo_files(repo_id, revision=revision)
    parts = {".", *(place for name in there if re.fullmatch(r"\d+_\w+", place := name.rpartition("/")[0]))}
    stale = [name for name in there if is_models(name, parts, WEIGHTS) and name not in files and name != LICENSE]
    operations = [
        *(hub.CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
          for name, content in files.items()),
        *(hub.CommitOperationDelete(name) for name in stale),
    ]  # fmt: skip
    done = api.create_commit(
        repo_id, operations, commit_message=options.get("commit_message") or "Push a model with mtl",
        revision=revision, create_pr=bool(options.get("create_pr")),
    )  # fmt: skip
    lost = files.keys() - {*api.list_repo_files(repo_id, revision=done.oid)}
    if lost:
        raise WeightsError(f"{repo_id} has a .gitignore that keeps out {', '.join(sorted(lost))}; change it there")
    return str(done.pr_url or done.commit_url)


def check_options(repo_id: str, options: PushOptions) -> None:
    """That a repository can be called so, that options are known, and that a token can stand in a header: no client
    then says what it could not send.

    Raises:
        InputError: it cannot, or they are not; the line does not show the token.
    """
    if not re.fullmatch(HUB_ID, repo_id):
        raise InputError(f"{shown(repo_id)} is no name on the hub; expected owner/name")
    if unknown := options.keys() - PushOptions.__annotations__.keys():
        expected = ", ".join(PushOptions.__annotations__)
        raise InputError(f"{shown(min(unknown))} is no option of a push; expected some of {expected}")
    check_flags(private=options.get("private"), create_pr=options.get("create_pr"))
    token = options.get("token")
    if token is not None and (not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token)):
        raise InputError("token is no token of the hub; expected a string of letters, digits and _, without spaces")


def refused(repo_id: str, error: Exception, token: str | None) -> WeightsError:
    """One line for whatever the hub's client raised. Tokens are taken out of it, whoever put them there."""
    status = status_of(error)
    advice = {
        401: "log in with `hf auth login`, or set HF_TOKEN",
        403: "the token may not write there; make one that may",
        404: "there is no such repository or branch, or the token may not see it",
    }.get(status or 0, "what was there before is as it was; try again")
    text = getattr(error, "server_message", None) or " ".join(str(error).split()) or type(error).__name__
    text = text.replace(token, "***") if token else text
    text = re.sub(r"hf_\w+|(?<=Bearer )\S+", "***", text)
    code = f"{status}: " if status else ""
    return WeightsError(f"{repo_id} was not pushed ({code}{text[:200]}); {advice}")


def push_saved(save: Callable[[Path], object], repo_id: str, options: PushOptions, onnx: bool = False) -> str:
    """As ``push``, of a model that ``save`` writes to a folder, with ONNX graphs if asked; gives the address.

    Raises:
        InputError: as ``push``; or the extra for ONNX is not installed.
        WeightsError: as ``push``; or a graph gives other values than the model.
    """
    check_options(repo_id, options)
    with tempfile.TemporaryDirectory(prefix="mtl-") as temporary:
        folder = Path(temporary) / repo_id.rpartition("/")[2]
        save(folder)
        if onnx:
            folder, saved = Path(temporary) / "onnx" / folder.name, folder
            checkpoints.export_onnx(saved, folder)
        return push(folder, repo_id, **options)[0]
