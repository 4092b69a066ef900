"""SentenceEncoder: known outputs, the same bits always, and every option."""

import dataclasses
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from conftest import WORDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors

import mtl
from mtl import SentenceEncoder
from mtl.checkpoints.load import Checkpoint
from mtl.encode.compat import THEIRS
from mtl.errors import InputError, WeightsError
from mtl.kernels.defaults import matmul
from mtl.model.pooling import Dense, Normalize

# Lengths on both sides of every threshold: a few tokens, a batch, more than the model's limit
CORPUS = [
    "Hi", "", "   ", "no", "ok then", "Rain again.", "The ferry left without us.", "naïve café 日本語 🙂",
    *(f"{'the old clock on the landing struck ' * n}{n}" for n in (1, 2, 3, 5, 8, 13, 21)),
    "word " * 300,
]  # fmt: skip


@pytest.fixture(scope="module")
def alone(minilm: SentenceEncoder) -> np.ndarray:
    """Each text's vector, encoded by itself."""
    return np.stack([minilm.encode(text, overflow="truncate") for text in CORPUS])


def test_reference_output_d(minilm: SentenceEncoder) -> None:
    vector = minilm.encode("hello world")
    np.testing.assert_allclose(vector[:5], [-0.034478, 0.03102, 0.00673, 0.02611, -0.039362], atol=1e-5)
    a, b, c = minilm.encode(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    np.testing.assert_allclose([a @ b, a @ c, b @ c], [0.6660, 0.1046, 0.1411], atol=1e-4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(len(CORPUS))),
    take=st.integers(1, len(CORPUS)),
    batch_tokens=st.integers(1, 2000),
    threads=st.integers(1, 4),
    neighbours=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), max_size=6),
)
def test_the_same_bits_always(minilm, alone, order, take, batch_tokens, threads, neighbours) -> None:
    """Whatever stands beside a text, in whatever order, token budget and number of threads."""
    indices = order[:take]
    texts = [CORPUS[i] for i in indices] + neighbours
    vectors = minilm.encode(texts, batch_tokens=batch_tokens, threads=threads, overflow="truncate")
    assert np.array_equal(vectors[:take], alone[indices])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_on_the_callers_threads(minilm: SentenceEncoder, alone: np.ndarray, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        again = np.stack([minilm.encode(text, overflow="truncate") for text in CORPUS])
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(again, alone)


@pytest.mark.parametrize("pooling", [("cls",), ("mean", "max"), ("weightedmean",), ("lasttoken", "mean_sqrt_len")])
def test_the_same_bits_through_every_part(checkpoint: Checkpoint, pooling: tuple[str, ...]) -> None:
    """Every pooling, a Dense layer, chunks and streams."""
    layer = Dense(12 * len(pooling), 5)
    model = SentenceEncoder.from_checkpoint(
        dataclasses.replace(checkpoint, pooling=pooling, after=(layer, Normalize()))
    )
    texts = ["a", "b c d", "", "e f g h i j k", "a b c d e f g h i j k l m n o p q r s t u v w x y z", "z"]
    alone = np.stack([model.encode(text, overflow="chunk") for text in texts])
    assert np.array_equal(model.encode(texts, overflow="chunk"), alone)
    assert np.array_equal(model.encode(texts, overflow="chunk", batch_tokens=5), alone)
    assert np.array_equal(np.concatenate([*model.encode_stream(texts, window=2, overflow="chunk")]), alone)


def test_shapes_and_types(tiny: SentenceEncoder) -> None:
    assert tiny.encode([]).shape == (0, 12)
    assert tiny.encode([], truncate_dim=3).shape == (0, 3)
    assert tiny.encode("a").shape == (12,)
    assert tiny.encode(["a"]).dtype == np.float32
    assert tiny.encode(("a", "b"), as_tensor=True).shape == (2, 12)
    assert tiny.encode([], as_tensor=True).shape == (0, 12)


def test_blank_texts_are_cls_sep(tiny: SentenceEncoder) -> None:
    empty, blank, lines = tiny.encode(["", "   ", "\n\t"])
    assert np.array_equal(empty, blank)
    assert np.array_equal(empty, lines)
    assert np.isfinite(empty).all()


def test_normalize_and_truncate_dim(tiny: SentenceEncoder) -> None:
    whole = tiny.encode(["a b", "c"])
    cut = tiny.encode(["a b", "c"], truncate_dim=4, normalize=True)
    np.testing.assert_allclose(cut, whole[:, :4] / np.linalg.norm(whole[:, :4], axis=1, keepdims=True), rtol=1e-6)


class Column:
    """As a column of a data frame: no sequence, but it gives its values in order."""

    def __init__(self, *values: object) -> None:
        self.values = values

    def __iter__(self):
        return iter(self.values)


class Frame(Column):
    columns = ("text",)


def test_many_kinds_of_several(tiny: SentenceEncoder) -> None:
    texts = ["a b", "日", "a b", ""]
    expected = tiny.encode(texts)
    column = pyarrow.chunked_array([texts])
    for several in (tuple(texts), np.array(texts), np.array(texts, object), Column(*texts), (t for t in texts), column):
        assert np.array_equal(tiny.encode(several), expected)
    assert np.array_equal(next(tiny.encode_stream(Column(*texts))), expected)
    assert tiny.encode(np.array(texts)[0]).shape == (12,)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"a", "b"}, "texts is of type set; expected a list, an array, a column or an iterator of strings"),
        ({"text": "a"}, "texts is of type dict"),
        (Frame("text"), "texts is of type Frame"),
        (7, "texts is of type int"),
        (np.array("a"), "texts is of type ndarray"),
        (b"abc", r"texts is a single string \(b'abc'\); expected several, as in \[text\]"),
        (Column("a", float("nan")), r"texts\[1\] is float \(nan\); expected a string"),
    ],
)
def test_what_are_no_texts(tiny: SentenceEncoder, texts: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny.encode(texts)


def test_a_stream_of_one_string_is_refused(tiny: SentenceEncoder) -> None:
    """At the call, and not letter by letter."""
    with pytest.raises(InputError, match=r"texts is a single string \('hello'\); expected several, as in \[text\]"):
        tiny.encode_stream("hello")


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_vector_that_is_not_finite_names_its_text(tiny: SentenceEncoder, value: float) -> None:
    with torch.no_grad():
        tiny.encoder.embeddings.word_embeddings.weight[WORDS.index("q")] = value
    message = r"texts\[4\] \('a q'\) has a vector that is not finite; compute in fp32"
    with pytest.raises(WeightsError, match=message):
        list(tiny.encode_stream(["a", "b", "c", "a", "a q"], window=3))


def test_prompt(checkpoint: Checkpoint) -> None:
    model = SentenceEncoder.from_checkpoint(dataclasses.replace(checkpoint, prompts={"q": "q "}, default_prompt="q "))
    plain = model.encode("q a", prompt="")
    assert np.array_equal(model.encode("a"), plain)
    assert np.array_equal(model.encode("a", prompt="q "), plain)
    assert not np.array_equal(model.encode("a", prompt=""), plain)


def test_prompts_by_name(checkpoint: Checkpoint) -> None:
    prompts = {"query": "q ", "passage": "p "}
    model = SentenceEncoder.from_checkpoint(dataclasses.replace(checkpoint, prompts=prompts))
    query, passage, word = (model.encode(text) for text in ("q a", "p a", "query a"))
    assert np.array_equal(model.encode("a", prompt_name="query"), query)
    assert np.array_equal(model.encode_query("a"), query)
    assert np.array_equal(model.encode_document(["a"]), passage[None])
    assert np.array_equal(model.encode_query("a", prompt="p "), passage)
    assert np.array_equal(model.encode("a", prompt="query "), word)
    with pytest.raises(InputError, match="prompt_name is 'q'; the model's prompts are: query, passage"):
        model.encode("a", prompt_name="q")
    with pytest.raises(InputError, match="prompt and prompt_name are given"):
        model.encode("a", prompt="q", prompt_name="query")
    plain = SentenceEncoder.from_checkpoint(checkpoint)
    assert np.array_equal(plain.encode_query("a"), plain.encode("a"))


def test_keywords_of_sentence_transformers(tiny: SentenceEncoder) -> None:
    """Those that mean the same give the same; the others are named."""
    texts = ["a b", "c"]
    found = tiny.encode(
        sentences=texts, convert_to_tensor=True, convert_to_numpy=True, normalize_embeddings=True,
        show_progress_bar=False, device="cpu", precision="float32", prompt_name=None,
    )  # fmt: skip
    assert isinstance(found, torch.Tensor)
    assert np.array_equal(found.numpy(), tiny.encode(texts, normalize=True))
    for options, message in (
        ({"device": "cuda"}, r"device is 'cuda', as in sentence-transformers; here, move the model with model.to"),
        ({"output_value": np.zeros(2)}, r"output_value is array.*, as in sentence-transformers; here, model.enc"),
        ({"device": "gpu"}, r"device is 'gpu', as in sentence-transformers; here, move the model with model.to"),
        ({"output_value": "token_embeddings"}, "output_value is 'token_embeddings'.* here, model.encoder gives"),
        ({"normalise": True}, "encode has no option 'normalise'; expected one of normalize"),
        ({"normalize": True, "normalize_embeddings": True}, "normalize_embeddings is given, and another keyword"),
    ):
        with pytest.raises(InputError, match=message):
            tiny.encode(texts, **options)
    with pytest.raises(InputError, match="text is 5; expected the name of a field, or a function of a row"):
        tiny.encode_rows([{"text": "a"}], 5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="device is 'None'; expected cpu, cuda"):
        SentenceEncoder.from_pretrained("all-MiniLM-L6-v2", device=None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"loaded with SentenceEncoder.from_pretrained\('all-MiniLM-L6-v2'\)"):
        SentenceEncoder("all-MiniLM-L6-v2")


def test_chunks_are_a_mean_weighted_by_tokens(tiny: SentenceEncoder) -> None:
    text = "a b c d e f g"  # windows of 3, 3 and 1 tokens between [CLS] and [SEP]
    parts = tiny.encode(["a b c", "d e f", "g"])
    expected = (5 * parts[0] + 5 * parts[1] + 3 * parts[2]) / 13
    np.testing.assert_allclose(tiny.encode(text, overflow="chunk", max_length=5), expected, atol=1e-6)


def test_chunks_of_a_normalizing_model_are_normalized(minilm: SentenceEncoder) -> None:
    vector = minilm.encode("word " * 600, overflow="chunk")
    assert abs(np.linalg.norm(vector) - 1) < 1e-6


def test_overflow_warns_once_with_counts(tiny: SentenceEncoder, caplog: pytest.LogCaptureFixture) -> None:
    tiny.encode(["a b c d", "a", "a b c"], max_length=4)
    assert caplog.messages == [
        "2 texts were longer than 4 tokens and lost 3 tokens; with overflow 'chunk' texts are embedded whole"
    ]
    caplog.clear()
    tiny.encode(["a b c"], max_length=4)
    advice = "with overflow 'chunk' texts are embedded whole"
    assert caplog.messages == [f"1 text was longer than 4 tokens and lost 1 token; {advice}"]
    caplog.clear()
    tiny.encode(["a b c d"], max_length=4, overflow="truncate")
    assert caplog.messages == []


def test_equal_texts_are_computed_once(tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = tiny.forward
    monkeypatch.setattr(tiny, "forward", lambda batch: seen.append(len(batch.lengths)) or forward(batch))
    vectors = tiny.encode(["a b c d e f g h i j k l m n", "b", "a b c d e f g h i j k l m n"] * 10, threads=1)
    assert vectors.shape == (30, 12)
    assert sum(seen) < 30


def test_stream_takes_what_it_needs(tiny: SentenceEncoder) -> None:
    """An endless stream gives its first windows; only windows under way are held."""

    def endless():
        while True:
            yield "a b"

    stream = tiny.encode_stream(endless(), window=4)
    assert next(stream).shape == (4, 12)
    assert np.array_equal(next(stream)[0], tiny.encode("a b"))
    stream.close()


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["a", 7], {}, r"texts\[1\] is int \(7\); expected a string"),
        (["a", None], {}, r"texts\[1\] is NoneType"),
        (["\udc80"], {}, r"texts\[0\] holds half of a surrogate pair"),
        (["a"], {"truncate_dim": 13}, "truncate_dim is 13; expected 1 to 12"),
        (["a"], {"truncate_dim": 0}, "truncate_dim is 0"),
        (["a"], {"batch_tokens": 0}, "batch_tokens is 0; expected 1 or more"),
        (["a"], {"threads": -1}, "threads is -1; expected 1 or more"),
        (["a"], {"threads": 1.5}, "threads is 1.5; expected a whole number"),
        (["a"], {"max_length": "8"}, "max_length is '8'; expected a whole number"),
        (["a"], {"prompt": 7}, "prompt is 7; expected a string"),
        (["a"], {"max_length": 17}, "max_length is 17; expected at most 16, the encoder's positions"),
        (["a"], {"max_length": 2}, "max_length is 2; expected at least 3"),
        (["a b c d"], {"max_length": 4, "overflow": "error"}, "text 0 has 6 tokens; the limit is 4"),
        (["a", "a", "a b c d"], {"max_length": 4, "overflow": "error"}, "text 2 has 6 tokens; the limit is 4"),
        (["a"], {"overflow": "wrap"}, "overflow is 'wrap'"),
        (["a"], {"prompt_name": ["q"]}, r"prompt_name is \['q'\]; the model's prompts are"),
        (["a"], {"normalize": "no"}, "normalize is 'no'; expected True or False"),
        (["a"], {"as_tensor": np.array([0, 1])}, r"as_tensor is array.*; expected True or False"),
        (["a"], {"sentences": ["b"]}, "texts is given twice to encode"),
    ],
)
def test_bad_input(tiny: SentenceEncoder, texts: list, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny.encode(texts, **options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("truncate_dim", 0, "truncate_dim is 0; expected 1 or more"),
        ("truncate_dim", -1, "truncate_dim is -1; expected 1 or more"),
        ("precision", "fp8", "precision is 'fp8'; expected one of fp32"),
        ("max_seq_length", None, "max_seq_length is None; expected a whole number"),
        ("truncate_dim", 5000, "truncate_dim is 5000; expected 1 to 12"),
        ("prompts", None, "prompts is None; expected a dict of names and prompts"),
        ("prompts", {"query": 1}, "prompts is {'query': 1}; expected a dict of names and prompts"),
        ("default_prompt", None, "default_prompt is None; expected a string"),
        ("default_prompt_name", "query", "prompt_name is 'query'; the model's prompts are: none"),
        ("similarity_fn_name", "bogus", "similarity_fn_name is 'bogus'; expected one of cosine, dot"),
        ("max_length", 10, "max_length is called max_seq_length here"),
        ("backend", "onnx", "there is no backend; model.precision"),
    ],
)
def test_bad_attributes(tiny: SentenceEncoder, name: str, value: object, message: str) -> None:
    def set_and_encode() -> None:
        setattr(tiny, name, value)
        tiny.encode("a")

    with pytest.raises(InputError, match=message):
        set_and_encode()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model: model.encode(["a"], 32),
            "encode is given 32 without its keyword; expected keywords after texts",
        ),
        (lambda model: model.encode(["a"], precision="int8"), "precision is 'int8', .* `mtl embed --output-precision`"),
        (lambda model: model(["a"]), r"the model is called with \['a'\]; model.encode\(texts\) gives the vectors"),
        (lambda model: model({"input_ids": 1}), r"the model is called with {'input_ids': 1}; model.encode"),
        (lambda model: model[0], "a model has no places; expected model.encoder"),
        (lambda model: model.search("a", ["b"], top_n=1), "search has no option 'top_n'; expected one of"),
        (lambda model: model.search("a", ["b"], score_function=max), "score_function is .* model.similarity_fn_name"),
        (lambda model: type(model)(model_name_or_path="x"), r"loaded with SentenceEncoder.from_pretrained\('x'\)"),
    ],
)
def test_calls_of_sentence_transformers(tiny: SentenceEncoder, call: Callable[..., object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(tiny)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncate_dim": 8}, "truncate_dim is 8, .* set it afterwards: model.truncate_dim"),
        ({"prompts": {"query": "q"}}, "set it afterwards: model.prompts"),
        ({"backend": "onnx"}, "backend is 'onnx', as in sentence-transformers; here, precision="),
        ({"trust_remote_code": True}, "no code of a checkpoint is ever run"),
        ({"model_kwargs": {"torch_dtype": "float16"}}, "precision='bf16' or 'int8'"),
        ({"token": "hf_secret"}, "token is given, as in sentence-transformers; here, log in"),
        ({"revison": "main"}, "from_pretrained has no option 'revison'; expected one of revision"),
    ],
)
def test_loading_as_sentence_transformers(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SentenceEncoder.from_pretrained("all-MiniLM-L6-v2", **options)


def test_what_asks_for_nothing_is_taken(tiny: SentenceEncoder, tmp_path: Path) -> None:
    tiny.save(tmp_path / "tiny")
    options = {"backend": "torch", "trust_remote_code": False, "token": None, "model_kwargs": {}}
    found = SentenceEncoder.from_pretrained(model_name_or_path=tmp_path / "tiny", device="cpu", **options)
    assert np.array_equal(found.search("a", ["b", "a", "c"], top_k=2)[1], tiny.search("a", ["b", "a", "c"], k=2)[1])


@pytest.mark.parametrize("name", THEIRS)
def test_names_of_sentence_transformers(tiny: SentenceEncoder, name: str) -> None:
    """Each is said where it is asked for, or set; a section of README.md that one names is there."""
    with pytest.raises(AttributeError, match=re.escape(THEIRS[name])):
        getattr(tiny, name)
    assert not hasattr(tiny, name)
    with pytest.raises(InputError, match=re.escape(THEIRS[name])):
        setattr(tiny, name, 1)
    for section in re.findall(r"README.md, ([^)]+)", THEIRS[name]):
        assert f"# {section}\n" in Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")


def test_a_default_prompt_by_its_name(tiny: SentenceEncoder) -> None:
    tiny.prompts = {"query": "a b "}
    assert tiny.default_prompt_name is None
    tiny.default_prompt_name = "query"
    assert (tiny.default_prompt, tiny.default_prompt_name) == ("a b ", "query")
    assert np.array_equal(tiny.encode("c"), tiny.encode("c", prompt_name="query"))
    tiny.default_prompt_name = None
    assert tiny.default_prompt == ""


def test_half_names_the_precision(tiny: SentenceEncoder, caplog: pytest.LogCaptureFixture) -> None:
    tiny.half().encode("a")
    assert "of float16, not float32 (precision='bf16' where it is loaded computes in less)" in caplog.text


def test_a_model_on_no_device_of_ours(tiny: SentenceEncoder) -> None:
    with pytest.raises(InputError, match="the model is on device 'meta'; expected cpu or cuda"):
        tiny.to("meta").encode("a")


def test_tokens_that_are_added_without_rows(tiny: SentenceEncoder) -> None:
    tiny.tokenizer.backend.add_tokens(["new"])
    with pytest.raises(WeightsError, match="the tokenizer gives ids up to 38, but the encoder's vocabulary has 38"):
        tiny.encode("a new")


def test_rows_without_a_text(tiny: SentenceEncoder) -> None:
    for row in ({"a": 1}, "a", 7):
        with pytest.raises(InputError, match=r"a row is .*; expected one with a field 'text'"):
            list(tiny.encode_rows([row]))


def test_a_bad_text_far_into_a_stream_is_named(tiny: SentenceEncoder) -> None:
    stream = tiny.encode_stream(["a", "b", "c", 4], window=2)
    assert next(stream).shape == (2, 12)
    with pytest.raises(InputError, match=r"texts\[3\] is int"):
        next(stream)


def test_thread_settings_are_restored(tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    texts = ["a b c d e f g"] + [f"{a} {b} c d e f g" for a in "abcdef" for b in "ghijkl"]
    tiny.encode(texts, batch_tokens=20, threads=3)
    assert torch.get_num_threads() == before

    def fail(model: SentenceEncoder, batch: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(SentenceEncoder, "forward", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        tiny.encode(texts, batch_tokens=20, threads=3)
    assert torch.get_num_threads() == before


def test_several_callers_at_once(tiny: SentenceEncoder) -> None:
    texts = [f"{a} {b} c" for a in "abcdef" for b in "ghijkl"]
    expected = tiny.encode(texts)
    before, results = torch.get_num_threads(), []
    callers = [
        threading.Thread(target=lambda: results.append(tiny.encode(texts, batch_tokens=30, threads=2)))
        for _ in range(8)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 8
    assert all(np.array_equal(result, expected) for result in results)
    seen = []
    reader = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    reader.start()
    reader.join()
    assert seen == [before] == [torch.get_num_threads()]


def test_a_prompt_of_none_is_none_given(checkpoint: Checkpoint) -> None:
    about = {"prompts": {"query": "q ", "passage": "z "}}
    model = SentenceEncoder.from_checkpoint(dataclasses.replace(checkpoint, **about))
    expected = model.encode(["q a"])
    for options in ({}, {"prompt": None}, {"prompt_name": None}, {"prompt": None, "prompt_name": None}):
        assert np.array_equal(model.encode_query(["a"], **options), expected)
    assert np.array_equal(model.encode_query(sentences=["a"]), expected)
    assert np.array_equal(model.encode_document(["a"], prompt=""), model.encode(["a"]))


def test_a_number_of_threads_of_numpy_s(tiny: SentenceEncoder) -> None:
    assert np.array_equal(tiny.encode(["a b"], threads=np.int64(2)), tiny.encode(["a b"]))


def test_a_limit_that_is_set_as_in_sentence_transformers(tiny: SentenceEncoder) -> None:
    tiny.max_seq_length = 4
    assert tiny.max_seq_length == 4
    cut = tiny.encode(["a b c d e"], overflow="truncate", batch_size=7)
    assert np.array_equal(cut, tiny.encode(["a b"]))
    for tokens, message in (
        (17, "max_length is 17; expected at most 16, the encoder's positions"),
        (2, "max_length is 2; expected at least 3"),
        (4.5, "max_seq_length is 4.5; expected a whole number"),
    ):
        with pytest.raises(InputError, match=message):
            tiny.max_seq_length = tokens  # type: ignore[assignment]
    assert tiny.max_seq_length == 4


def test_methods_of_sentence_transformers_are_named(tiny: SentenceEncoder) -> None:
    assert not hasattr(tiny, "save_to_hub")
    with pytest.raises(AttributeError, match=r"save_pretrained is called save here: model.save\(folder\)"):
        tiny.save_pretrained("x")
    with pytest.raises(AttributeError, match="'SentenceEncoder' object has no attribute 'nothing'"):
        _ = tiny.nothing


def test_the_package_names_what_it_has() -> None:
    assert {"SentenceEncoder", "train", "Recipe"} <= set(dir(mtl))


@pytest.fixture
def bare(checkpoint: Checkpoint) -> SentenceEncoder:
    """The tiny model with a tokenizer that adds no special tokens."""
    checkpoint.tokenizer.post_processor = processors.Sequence([])
    return SentenceEncoder.from_checkpoint(checkpoint)


def test_texts_without_tokens(bare: SentenceEncoder, caplog: pytest.LogCaptureFixture) -> None:
    """Zeros, among others or alone, and one line; what stands beside them keeps its bits."""
    alone = bare.encode("a b")
    found = bare.encode(["", "a b", " \n", ""], normalize=False)
    assert np.array_equal(found, np.stack([0 * alone, alone, 0 * alone, 0 * alone]))
    assert [r.getMessage() for r in caplog.records] == ["3 texts without a single token: a vector of zeros for each"]
    for options in ({"normalize": True}, {"overflow": "chunk", "max_length": 1}, {"truncate_dim": 12}):
        assert not bare.encode("", **options).any()
    assert not next(bare.encode_stream(iter([""]))).any()
    assert bare.encode("", prompt="a b").tolist() == alone.tolist()
    assert bare.search([""], ["a", ""], 2)[1].tolist() == [[0, 1]]
    ((_, found),) = bare.encode_rows([{"text": ""}])
    assert not found.any()


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_torch_s_defaults_change_nothing(tiny: SentenceEncoder, kind: torch.dtype) -> None:
    texts = ["a b c", "d " * 40, "e"]
    expected, found = tiny.encode(texts, overflow="chunk"), tiny.search(texts[:2], texts, 2)
    torch.set_default_dtype(kind)
    torch.set_default_device("meta")
    try:
        assert tiny.encode([]).dtype == np.float32
        assert np.array_equal(tiny.encode(texts, overflow="chunk"), expected)
        assert all(map(np.array_equal, tiny.search(texts[:2], texts, 2), found))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    with torch.autocast("cpu"):
        assert np.array_equal(tiny.encode(texts, overflow="chunk"), expected)
        assert all(map(np.array_equal, tiny.search(texts[:2], texts, 2), found))


def test_what_a_process_has_set_of_products_changes_nothing(tiny: SentenceEncoder) -> None:
    """With AMX, "medium" would have products of float32 computed in bfloat16; without flash attention another kernel
    computes, which texts beside a text change. Both are as before afterwards."""
    texts = ["a b c", "d " * 40, "e"]
    expected, before = tiny.encode(texts), torch.get_float32_matmul_precision()
    seen = []
    program = tiny.program()
    tiny.program = lambda: (
        lambda batch: seen.append((matmul.fp32_precision, torch.backends.cuda.flash_sdp_enabled())) or program(batch)
    )
    torch.set_float32_matmul_precision("medium")
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        set_so = matmul.fp32_precision
        assert np.array_equal(tiny.encode(texts), expected)
        assert (matmul.fp32_precision, torch.backends.cuda.flash_sdp_enabled()) == (set_so, False)
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cuda.enable_flash_sdp(True)
    assert set(seen) == {("ieee", True)}
