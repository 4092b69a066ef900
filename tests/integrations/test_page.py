"""Every snippet of docs/integrations.md, by its heading, and what the libraries themselves check of such classes.

Those whose library is not here are skipped; `make test-integrations` installs them all.
"""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mtl import InputError, SentenceEncoder

PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")
TEXTS = ["a b c", "The weather is lovely today.", "He drove to the stadium."]

pytestmark = pytest.mark.slow


def snippets(heading: str, language: str = "python") -> list[str]:
    section = PAGE.split(f"\n## {heading}\n")[1].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def run(code: str) -> dict[str, Any]:
    """What a snippet defines."""
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(code, names)
    return names


def test_scikit_learn(
    minilm: SentenceEncoder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas
    from sklearn.base import clone
    from sklearn.compose import make_column_transformer
    from sklearn.model_selection import GridSearchCV
    from sklearn.utils.estimator_checks import check_estimator

    vectorizer, classifier = map(run, snippets("scikit-learn"))
    assert capsys.readouterr().out == "['food' 'art']\n"
    found = vectorizer["SentenceVectorizer"]()
    check_estimator(found)
    assert np.array_equal(clone(found).fit_transform(TEXTS), minilm.encode(TEXTS))
    assert len(found.fit(TEXTS).get_feature_names_out()) == 384
    frame = pandas.DataFrame({"text": TEXTS, "more": [1, 2, 3]})
    both = make_column_transformer((found, "text"), ("passthrough", ["more"])).set_output(transform="pandas")
    assert both.fit_transform(frame).shape == (3, 385)
    monkeypatch.setitem(sys.modules, "snippet", SimpleNamespace(**vectorizer))  # where pickle looks for the class
    assert np.array_equal(pickle.loads(pickle.dumps(found)).transform(frame["text"]), minilm.encode(TEXTS))
    with pytest.raises(InputError, match="texts is of type DataFrame"):  # and not one text, the column's name
        found.transform(frame[["text"]])
    search = GridSearchCV(vectorizer["pipeline"], {"logisticregression__C": [0.1, 1]}, cv=3)
    assert search.fit(vectorizer["texts"], vectorizer["labels"]).best_score_ > 0.3
    trained = classifier["TextClassifier"](epochs=4, learning_rate=1e-3)
    check_estimator(trained)
    trained.fit(vectorizer["texts"], vectorizer["labels"])
    assert trained.score(vectorizer["texts"], vectorizer["labels"]) == 1
    np.testing.assert_allclose(trained.predict_proba(TEXTS).sum(axis=1), 1, atol=1e-6)
    for given in (pandas.Series(TEXTS), np.array(TEXTS)):
        assert np.array_equal(trained.predict(given), trained.predict(TEXTS))
    assert {*trained.predict(TEXTS)} <= {"food", "art"}


def test_langchain(minilm: SentenceEncoder) -> None:
    pytest.importorskip("langchain_core")
    embeddings = run(snippets("LangChain")[0])["MtlEmbeddings"]()
    assert embeddings.embed_documents(TEXTS) == minilm.encode(TEXTS).tolist()
    assert embeddings.embed_query("a") == minilm.encode("a").tolist()
    unit = pytest.importorskip("langchain_tests.integration_tests")

    class Theirs(unit.EmbeddingsIntegrationTests):
        embeddings_class = type(embeddings)
        embedding_model_params: dict[str, Any] = {}  # noqa: RUF012

    for name in ("test_embed_query", "test_embed_documents"):
        getattr(Theirs(), name)(embeddings)


def test_langchain_of_a_server(minilm: SentenceEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("langchain_openai")
    from serve.conftest import running

    from mtl.serve.app import Service
    from mtl.serve.model import Served

    with running(Service(Served(minilm, "all-MiniLM-L6-v2"))) as client:
        code = snippets("LangChain")[1].replace("http://127.0.0.1:8080", client.url)
        embeddings = run(code)["embeddings"]
        found = np.array(embeddings.embed_documents(TEXTS), np.float32)
    assert capsys.readouterr().out == "384\n"
    assert np.array_equal(found, minilm.encode(TEXTS, normalize=True))


def test_chroma(minilm: SentenceEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    chromadb = pytest.importorskip("chromadb")
    (code,) = snippets("Chroma")
    names = run(code)
    assert capsys.readouterr().out == "[['a']]\n"
    made = names["MtlEmbeddingFunction"]
    function = made.build_from_config(made().get_config())
    assert function.model == "all-MiniLM-L6-v2"
    function.encoder.prompts = {"query": "q: ", "document": "d: "}
    for call, text in ((function, "d: a"), (function.embed_query, "q: a")):
        np.testing.assert_array_equal(call(["a"]), minilm.encode([text]))
    collection = chromadb.EphemeralClient().create_collection("prompts", embedding_function=function)
    collection.add(ids=["a", "b"], documents=TEXTS[:2])
    found = collection.query(query_texts=["a sunny day"], include=["distances"], n_results=2)
    expected = 1 - minilm.similarity(
        minilm.encode("q: a sunny day"), minilm.encode([f"d: {text}" for text in TEXTS[:2]])
    )
    np.testing.assert_allclose(found["distances"], np.sort(expected), atol=1e-5)


def test_haystack(minilm: SentenceEncoder) -> None:
    haystack = pytest.importorskip("haystack")
    (code,) = snippets("Haystack")
    names = run(code)
    pipeline = haystack.Pipeline()
    pipeline.add_component("documents", names["MtlDocumentEmbedder"]())
    pipeline.add_component("text", names["MtlTextEmbedder"]())
    given = [haystack.Document(content=text) for text in TEXTS]
    found = pipeline.run({"documents": {"documents": given}, "text": {"text": "a"}})
    assert [each.embedding for each in found["documents"]["documents"]] == minilm.encode(TEXTS).tolist()
    assert found["text"]["embedding"] == minilm.encode("a").tolist()
    assert given[0].embedding is None
    (blank,) = names["MtlDocumentEmbedder"]().run([haystack.Document(content=None)])["documents"]
    assert blank.embedding == minilm.encode("").tolist()


def test_llama_index(minilm: SentenceEncoder) -> None:
    core = pytest.importorskip("llama_index.core")
    (code,) = snippets("LlamaIndex")
    made = run(code)["MtlEmbedding"]
    embedding = made.from_dict(made().to_dict())
    assert embedding.class_name() == "MtlEmbedding"
    assert embedding.get_text_embedding_batch(TEXTS) == minilm.encode(TEXTS).tolist()
    documents = [core.Document(text=text) for text in TEXTS]
    index = core.VectorStoreIndex.from_documents(documents, embed_model=embedding)
    (best,) = index.as_retriever(similarity_top_k=1).retrieve("a sunny day")
    assert best.node.get_content() == TEXTS[1]


def test_mteb(minilm: SentenceEncoder, tmp_path: Path) -> None:
    mteb = pytest.importorskip("mteb")
    import datasets
    from mteb.abstasks.sts import AbsTaskSTS

    class Ours(AbsTaskSTS):
        metadata = mteb.TaskMetadata(
            name="Ours", description="Three pairs", type="STS", category="t2t", modalities=["text"],
            dataset={"path": "none/none", "revision": "1"}, eval_splits=["test"], eval_langs=["eng-Latn"],
            main_score="cosine_spearman", reference=None, date=None, domains=None, task_subtypes=None, license=None,
            annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation=None,
        )  # fmt: skip
        min_score, max_score = 0, 5

        def load_data(self, *args: object, **options: object) -> None:
            rows = {"sentence1": ["a dog", "a dog", "a dog"], "sentence2": ["a puppy", "a cat", "the stock market"],
                    "score": [5.0, 3.0, 0.0]}  # fmt: skip
            self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows)})
            self.data_loaded = True

    (code,) = snippets("MTEB")
    made, cache = run(code)["MtebModel"], mteb.ResultCache(tmp_path / "cache")
    other = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2")
    next(other.encoder.parameters()).data *= -1  # trained on, under the same name
    other.save(tmp_path / "all-MiniLM-L6-v2")
    model, another = made(), made(f"{tmp_path}/all-MiniLM-L6-v2/")
    assert another.mteb_model_meta.name == model.mteb_model_meta.name
    first, second = (mteb.evaluate(each, [Ours()], cache=cache).task_results[0] for each in (model, another))
    assert first.get_score() == pytest.approx(1)
    assert first.scores != second.scores  # which are not those that were kept of the first
    vectors = np.eye(3, dtype=np.float32) * 2
    for measure in ("dot", "euclidean"):
        model.encoder.similarity_fn_name = measure
        assert model.similarity_pairwise(vectors, vectors[::-1]).tolist() == pytest.approx(
            np.diag(model.encoder.similarity(vectors, vectors[::-1])).tolist()
        )


def test_every_section_is_tried() -> None:
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    tried = Path(__file__).read_text() + Path(__file__).with_name("test_export.py").read_text()
    assert all(f'snippets("{heading}"' in tried for heading in headings)
