"""What an exported folder is to those who read such folders: fastembed, and transformers.js in node and in Chromium.

They are in `make test-integrations`, which installs them.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import randomized
from integrations.test_page import run, snippets

from mtl import MultiTaskModel, SentenceEncoder, TaskSpec, export_onnx

ROOT = Path(__file__).parents[2]
MODULES = ROOT / ".node" / "node_modules"
TEXTS = ["a b c", "The weather is lovely today.", "It is so sunny outside, and nobody is at work!"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small model, exported."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("models")
    export_onnx("all-MiniLM-L6-v2", folder / "exported")
    return folder


@pytest.fixture(scope="module")
def topics(models: Path) -> MultiTaskModel:
    """A head that is none of the family's own, exported beside it."""
    model = MultiTaskModel(SentenceEncoder.from_pretrained("all-MiniLM-L6-v2"), [TaskSpec("topic", ("x", "y", "z"))])
    randomized(model.branches)
    model.eval().save(models / "saved")
    export_onnx(models / "saved", models / "topics")
    return model


def test_fastembed(models: Path, minilm: SentenceEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured: 2e-7."""
    pytest.importorskip("fastembed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(models)
    (code,) = snippets("fastembed")
    theirs = run(code)["embedding"]
    np.testing.assert_allclose(np.stack([*theirs.embed(TEXTS)]), minilm.encode(TEXTS), atol=1e-5)


def test_transformers_js_as_it_is_shown(models: Path, tmp_path: Path) -> None:
    if not MODULES.is_dir() or not shutil.which("node"):
        pytest.skip("node or transformers.js is not there")
    for name, target in {"node_modules": MODULES, "exported": models / "exported"}.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "run.mjs").write_text(*snippets("transformers.js", "js"))
    done = subprocess.run(["node", "run.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[ 2, 384 ]\n"


SCRIPT = """
import { env, pipeline } from "@huggingface/transformers";
env.allowRemoteModels = false;
env.localModelPath = process.argv[2];
const texts = JSON.parse(process.argv[3]);
const found = {};
for (const dtype of ["fp32", "q8"]) {
  const embed = await pipeline("feature-extraction", "exported", { dtype });
  found[dtype] = (await embed(texts, { pooling: "mean", normalize: true })).tolist();
}
const classify = await pipeline("text-classification", "topics", { dtype: "fp32" });
found.labels = await classify(texts, { top_k: null });
console.log(JSON.stringify(found));
"""


def test_transformers_js(models: Path, minilm: SentenceEncoder, topics: MultiTaskModel, tmp_path: Path) -> None:
    """Vectors, and labels with probabilities. Measured: 3e-7."""
    if not MODULES.is_dir() or not shutil.which("node"):
        pytest.skip("node or transformers.js is not there")
    (tmp_path / "node_modules").symlink_to(MODULES)
    (tmp_path / "run.mjs").write_text(SCRIPT)
    command = ["node", str(tmp_path / "run.mjs"), f"{models}/", json.dumps(TEXTS)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    expected = minilm.encode(TEXTS)
    np.testing.assert_allclose(found["fp32"], expected, atol=1e-5)
    assert (np.array(found["q8"]) * expected).sum(axis=1).min() > 0.9
    scores = topics.predict(TEXTS).scores["topic"]
    for row, labels in zip(scores, found["labels"], strict=True):
        given = {each["label"]: each["score"] for each in labels}
        np.testing.assert_allclose([given[label] for label in ("x", "y", "z")], row, atol=1e-5)


HTML = """<!doctype html>
<script type="importmap">{"imports": {
  "onnxruntime-web": "/modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
  "onnxruntime-web/webgpu": "/modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
  "onnxruntime-common": "/modules/onnxruntime-common/dist/esm/index.js"}}</script>
<script type="module">
import { env, pipeline } from "/modules/@huggingface/transformers/dist/transformers.web.min.js";
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "/models/";
env.backends.onnx.wasm.wasmPaths = "/modules/onnxruntime-web/dist/";
env.backends.onnx.wasm.numThreads = 1;
const embed = await pipeline("feature-extraction", "exported", { dtype: "fp32", device: "wasm" });
window.found = (await embed(TEXTS, { pooling: "mean", normalize: true })).tolist();
</script>"""


def test_transformers_js_in_a_browser(models: Path, minilm: SentenceEncoder, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not MODULES.is_dir() or not chromium:
        pytest.skip("chromium or transformers.js is not there")
    for name, target in {"modules": MODULES, "models": models}.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "index.html").write_text(HTML.replace("TEXTS", json.dumps(TEXTS)))
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
            page.wait_for_function("window.found", timeout=60_000)
            found = page.evaluate("window.found")
            browser.close()
        server.shutdown()
    np.testing.assert_allclose(found, minilm.encode(TEXTS), atol=1e-5)


class Quiet(http.server.SimpleHTTPRequestHandler):
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}  # noqa: RUF012

    def log_message(self, *args: object) -> None:
        pass
