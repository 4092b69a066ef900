"""Each family of encoders, from a folder as transformers writes it and back, without transformers.

tests/goldens/families/ holds a tiny sequence classifier of each with what transformers computes; see make.py there.
"""

import dataclasses
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import GOLDENS, Golden, golden
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from training.test_loop import go

from mtl import MultiTaskModel, SentenceEncoder, TaskSpec, embed_corpus
from mtl.checkpoints.families import FAMILIES
from mtl.checkpoints.listing import FAMILIES as MODELS
from mtl.checkpoints.listing import known_families
from mtl.checkpoints.load import encoder_config, load, load_encoder
from mtl.errors import ConfigError, WeightsError
from mtl.model.packing import PackedBatch
from mtl.training.data import load_data
from mtl.training.recipe import Recipe, Training
from mtl.training.run import Run, prepare
from mtl.training.start import create

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def case(family: str) -> Golden:
    return golden(f"families/{family}")


@pytest.fixture
def folder(case: Golden, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    return written(case, tokenizer, tmp_path / "theirs")


def written(case: Golden, tokenizer: Tokenizer, folder: Path) -> Path:
    """A golden's classifier, with a tokenizer of letters."""
    folder.mkdir()
    save_file(case.weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(case.config))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return folder


def outputs(model: MultiTaskModel, case: Golden) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden states of the golden's tokens, and its logits, by the modules and by the program."""
    batch = PackedBatch.from_padded(case.ids, case.mask)
    with torch.no_grad():
        hidden = model.encoder(batch)
        logits = model(batch)[1]["classification"]
        torch.testing.assert_close(model.embedder.program().encoder(batch), hidden, atol=1e-5, rtol=0)
    return hidden, logits


def test_equals_the_reference(case: Golden, folder: Path, tmp_path: Path) -> None:
    """And again from what is saved of it. Measured: at most 3e-6; a swapped tensor, eps or position gives 1e-3."""
    model = MultiTaskModel.from_pretrained(folder)
    hidden, logits = outputs(model, case)
    torch.testing.assert_close(hidden, case.hidden[case.mask.bool()], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, case.logits, atol=1e-5, rtol=0)
    model.save(tmp_path / "ours")
    again = MultiTaskModel.from_pretrained(tmp_path / "ours")
    for ours, expected in zip(outputs(again, case), (hidden, logits), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    assert again.embedder.origin.model_type == case.config["model_type"]
    assert again.embedder.fingerprint == model.embedder.fingerprint


def test_the_names_that_it_came_with(case: Golden, folder: Path, tmp_path: Path) -> None:
    """What is saved has the tensors' names and shapes that transformers wrote, and its fields of config.json."""
    MultiTaskModel.from_pretrained(folder).save(tmp_path / "ours")
    found = {name: x.shape for name, x in load_file(tmp_path / "ours" / "model.safetensors").items()}
    config, left = json.loads((tmp_path / "ours" / "config.json").read_text()), {"dtype", "transformers_version"}
    assert found == {name: x.shape for name, x in case.weights.items()}
    kept = {name: value for name, value in case.config.items() if name not in left}
    assert {name: config.get(name) for name in kept} == kept


def test_the_same_bits_alone_and_among_others(folder: Path) -> None:
    model = SentenceEncoder.from_pretrained(folder)
    texts = ["a b c", "d", "a b c d e f g h i j", "", "b c d", "d c b a"]
    together = model.encode(texts)
    for threads in (1, 2):
        alone = [model.encode(text, threads=threads).tolist() for text in texts]
        assert alone == together.tolist()


@pytest.mark.parametrize("value", [0, -1, 1.5, "x", [], True, 10**12])
def test_hostile_configs(family: str, case: Golden, value: object) -> None:
    """Every field that shapes the encoder, set to what it cannot be, is one line that names it."""
    sizes = {"vocab_size", "max_position_embeddings", "n_layers", "n_heads", "dim", "hidden_dim", "local_attention"}
    shape = [name for name, ours in FAMILIES[family].config.items() if ours in {*sizes, "activation"}]
    for name in shape:
        with pytest.raises(ConfigError) as error:
            encoder_config({**case.config, name: value}, Path("config.json"))
        assert str(error.value).startswith("config.json: ")
        assert str(error.value).isprintable()


@pytest.mark.parametrize("value", [-41, 40, 10**12, "1", 1.5, True, [], {}])
def test_padding_beyond_the_words(case: Golden, value: object) -> None:
    """transformers could not load it, and what we save has the same field."""
    with pytest.raises(ConfigError, match="config.json: pad_token_id is"):
        encoder_config({**case.config, "pad_token_id": value}, Path("config.json"))


def test_heads_of_unequal_width(family: str, case: Golden) -> None:
    name = next(theirs for theirs, ours in FAMILIES[family].config.items() if ours == "n_heads")
    with pytest.raises(ConfigError, match="n_heads 3 does not divide dim 16"):
        encoder_config({**case.config, name: 3}, Path("config.json"))


def test_the_families_are_those_that_are_said() -> None:
    """In models.toml, in weights/README.md, and by `mtl models --families`; each has a golden, each tried model is
    pinned."""
    known = tomllib.loads(MODELS.read_text(encoding="utf-8"))
    assert set(known) == set(FAMILIES) == {path.stem for path in (GOLDENS / "families").iterdir()}
    said = known_families()
    assert f"```\n{said}\n```" in (ROOT / "weights" / "README.md").read_text(encoding="utf-8")
    pinned = tomllib.loads((ROOT / "weights" / "manifest.toml").read_text(encoding="utf-8"))
    assert {name for entry in known.values() for name in entry.get("tried", ())} == set(pinned)
    command = [sys.executable, "-m", "mtl", "models", "--families"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == said + "\n"


@pytest.fixture
def data(family: str, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of two tasks, and a teacher, of the family that comes next."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = list(FAMILIES)
    written(golden(f"families/{names[names.index(family) - 1]}"), tokenizer, tmp_path / "teacher")
    letters = "abcdefghij"
    rows = [{"text": " ".join(letters[i % 7 : i % 7 + 1 + i % 4]), "label": "xy"[i % 2]} for i in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(folder: Path, **changes: object) -> Recipe:
    """Of a task of labels that holds the first block, with a rate for each layer, and of a teacher's vectors."""
    tasks = (
        TaskSpec("label", ("x", "y"), train="train.jsonl", dev="train.jsonl", freeze=1),
        TaskSpec("teacher", kind="distillation", train="train.jsonl", dev="train.jsonl", teacher="teacher"),
    )
    training = Training(epochs=2, batch_size=4, accumulate=2, learning_rate=1e-3, layer_decay=0.9, seed=3)
    return Recipe("theirs", tasks, training, folder, **changes)


def run_of(recipe: Recipe, folder: Path) -> Run:
    model = create(recipe)
    found, _ = load_data(recipe, model.embedder, ["train", "dev"])
    return Run(prepare(recipe, model, {**found, "test": {}}), folder)


def test_training(folder: Path, data: Path) -> None:
    """Two tasks, stopped in the middle and resumed, end with the same bits; what is saved is of the same family.

    Every parameter of the trunk changes, since the other family's vectors are learnt by all of it.
    """
    whole, cut = (run_of(recipe(data), data / name) for name in ("whole", "cut"))
    before = {name: x.clone() for name, x in whole.model.encoder.named_parameters()}
    go(whole)
    go(cut, 3)
    cut.save()
    again = run_of(recipe(data), data / "cut")
    assert again.restore() == []
    go(again)
    for (name, ours), other in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(ours, other), name
    assert not [name for name, x in whole.model.encoder.named_parameters() if torch.equal(x, before[name])]
    whole.model.eval().save(data / "trained")
    trained = MultiTaskModel.from_pretrained(data / "trained")
    assert trained.embedder.origin.model_type == whole.model.embedder.origin.model_type
    texts = ["a b c", "d"]
    assert trained.predict(texts).embeddings.tolist() == whole.model.predict(texts).embeddings.tolist()


def test_frozen_prefixes(folder: Path, data: Path) -> None:
    """What all tasks hold is remembered for each text, and keeps its bits; the blocks above learn."""
    frozen = recipe(data)
    frozen = dataclasses.replace(frozen, tasks=tuple(dataclasses.replace(task, freeze=1) for task in frozen.tasks))
    ends = []
    for cache_mb in (0, 64):
        run = run_of(dataclasses.replace(frozen, training=dataclasses.replace(frozen.training, cache_mb=cache_mb)),
                     data / f"run{cache_mb}")  # fmt: skip
        before = {name: x.clone() for name, x in run.model.encoder.named_parameters()}
        go(run)
        for name, x in run.model.encoder.named_parameters():
            assert torch.equal(x, before[name]) == (run.model.encoder.depth_of(name) <= 1), name
        ends.append(run.model.state_dict())
    for name, x in ends[0].items():
        torch.testing.assert_close(x, ends[1][name], atol=1e-6, rtol=0, msg=name)


def test_fewer_layers_and_other_formats(folder: Path, data: Path) -> None:
    """One block alone is saved as such; int8, bf16 and a corpus' files come of it."""
    whole = SentenceEncoder.from_pretrained(folder).encoder
    layer = 0 if getattr(whole.config, "pre_norm", False) else 1  # ModernBERT's first has no norm of its own
    model = create(recipe(data, layers=[layer])).eval()
    model.embedder.save(data / "upper")
    upper = SentenceEncoder.from_pretrained(data / "upper")
    assert upper.encoder.config.n_layers == 1
    for name, x in upper.encoder.blocks[0].state_dict().items():
        assert torch.equal(x, whole.blocks[layer].state_dict()[name]), name
    texts = [json.loads(line)["text"] for line in (data / "train.jsonl").read_text().splitlines()]
    expected = upper.encode(texts)
    for precision, least in (("bf16", 0.999), ("int8", 0.9)):
        found = SentenceEncoder.from_pretrained(data / "upper", precision=precision).encode(texts)
        cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosines.min() > least, precision
    embed_corpus([data / "train.jsonl"], data / "corpus", model=data / "upper", id_column=None)
    (path,) = (data / "corpus").glob("*.parquet")
    assert pq.read_table(path)["embedding"].to_pylist() == expected.tolist()


@pytest.mark.parametrize(("kinds", "lines"), [("full sliding sliding full", 0), ("full sliding full full", 1)])
def test_what_transformers_4_cannot_read_is_said(kinds: str, lines: int, tokenizer, tmp_path: Path, caplog) -> None:
    """Its ModernBERT lets the first block and every n-th see whole texts."""
    checkpoint = load(written(golden("families/modernbert"), tokenizer, tmp_path / "theirs"))
    named = tuple(f"{kind}_attention" for kind in kinds.split())
    config = dataclasses.replace(checkpoint.config, n_layers=len(named), layer_types=named)
    caplog.clear()
    changed = dataclasses.replace(checkpoint, encoder=type(checkpoint.encoder)(config))
    SentenceEncoder.from_checkpoint(changed).save(tmp_path / "changed")
    said = [line for line in caplog.messages if line.startswith("transformers 4 does not read layer_types")]
    assert len(said) == lines
    assert SentenceEncoder.from_pretrained(tmp_path / "changed").encoder.config == config


def test_another_encoder_is_saved_in_the_place_of_what_came(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Of another width: what the second segment added to the first encoder's tokens does not belong to it."""
    checkpoint = load(written(golden("families/bert"), tokenizer, tmp_path / "theirs"))
    assert checkpoint.origin.types is not None
    config = dataclasses.replace(checkpoint.config, dim=8, hidden_dim=12, n_heads=2)
    other = dataclasses.replace(checkpoint, encoder=type(checkpoint.encoder)(config), classifier=None)
    model = SentenceEncoder.from_checkpoint(other)
    model.save(tmp_path / "other")
    texts = ["a b", "c"]
    assert np.array_equal(SentenceEncoder.from_pretrained(tmp_path / "other").encode(texts), model.encode(texts))


ROPE = {"rope_type": "default", "rope_theta": 1000.0}
HOSTILE = {
    "roberta": [("pad_token_id", value, "pad_token_id is") for value in (None, -1, 17, 18, 10**9, "1", 1.5, True)],
    "mpnet": [("relative_attention_num_buckets", value, "num_buckets is") for value in (31, 64, "x")],
    "modernbert": [
        ("layer_types", ["full_attention"], "layer_types is"),
        ("layer_types", ["full_attention", "sliding_attention", "chunked_attention"], "layer_types is"),
        ("layer_types", "full_attention", "layer_types is"),
        ("layer_types", {"full_attention": 3}, "layer_types is"),
        ("layer_types", [[], {}, None], "layer_types is"),
        ("rope_scaling", {"type": "yarn", "factor": 2}, "rope_scaling is"),
        ("rope_parameters", {"full_attention": {"rope_type": "linear", "factor": 2.0}}, "rope_type 'default'"),
        ("rope_parameters", {"full_attention": 3}, "rope_parameters.full_attention is 3; expected an object"),
        ("rope_parameters", {"other_attention": ROPE}, "rope_parameters is"),
        ("rope_parameters", [1], "rope_parameters is"),
        ("rope_parameters", {"full_attention": {"rope_theta": "x"}}, "theta is 'x'"),
        ("rope_parameters", {"full_attention": {"rope_theta": 0.5}}, "theta is 0.5"),
        ("local_attention", 0, "local_attention is 0"),
        ("mlp_bias", "yes", "mlp_bias|gate_bias"),
    ],
    "nomic_bert": [
        ("rope_scaling", {"type": "dynamic"}, "rope_scaling is"),
        ("rope_parameters", {**ROPE, "partial_rotary_factor": 0.5}, "rope_parameters is"),
        ("rope_parameters", {**ROPE, "rope_type": "llama3"}, "rope_parameters is"),
        ("rope_parameters", {**ROPE, "rope_type": "linear"}, "rope_parameters is"),
        ("rope_parameters", {**ROPE, "rope_type": "linear", "factor": "2"}, "linear_factor is '2'"),
        ("rope_parameters", {**ROPE, "rope_type": "linear", "factor": 2, "beta_fast": 1}, "rope_parameters is"),
        ("hidden_size", 18, "expected an even number"),
        ("type_vocab_size", -1, "type_vocab_size is -1"),
    ],
    "new": [
        *(("rope_scaling", value, "rope_scaling is") for value in (
            {"type": "dynamic", "factor": 2.0}, {"type": "ntk"}, {"factor": 2.0}, {},
            {"type": "ntk", "factor": 2, "mixed_b": 1}, {"type": ["ntk"], "factor": 2.0},
            {"type": {}, "factor": 2.0}, "ntk", [], 3)),
        ("rope_scaling", {"type": "ntk", "factor": "2"}, "ntk_factor is '2'"),
        ("rope_scaling", {"type": "ntk", "factor": 0.5}, "ntk_factor is 0.5"),
        ("rope_theta", "x", "theta is 'x'"),
        ("rope_parameters", ROPE, "rope_parameters is"),
        ("position_embedding_type", "absolute", "position_embedding_type is 'absolute'"),
        ("pack_qkv", False, "pack_qkv is False"),
        ("layer_norm_type", "rms_norm", "layer_norm_type is 'rms_norm'"),
        ("logn_attention_scale", True, "logn_attention_scale is True"),
    ],
    "deberta-v2": [
        *(("position_buckets", value, "position_buckets is") for value in (1, "x", 2.5, True, 10**12)),
        *(("max_relative_positions", value, "max_relative_positions is") for value in (2, "x", [], 10**12)),
        *(("pos_att_type", value, "pos_att_type is") for value in ("c2p|p2p", 3, [3], {"c2p": 1}, ["C2P"])),
        *(("norm_rel_ebd", value, "norm_rel_ebd is") for value in ("layer_norm|x", 3, {})),
        *(("relative_attention", value, "relative_attention is") for value in (False, None, 1, "yes")),
        ("share_att_key", "yes", "share_att_key is 'yes'"),
        ("position_biased_input", 1, "position_biased_input is 1"),
        ("conv_kernel_size", 3, "conv_kernel_size is 3; expected 0"),
        ("embedding_size", 8, "embedding_size is 8"),
        ("attention_head_size", 4, "attention_head_size is 4"),
        ("type_vocab_size", -1, "type_vocab_size is -1"),
    ],
    "electra": [("embedding_size", value, "embedding_dim is") for value in (0, -1, "x", [], 1.5, True, 10**12)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "field", "value", "message"), [(k, *c) for k, cases in HOSTILE.items() for c in cases]
)
def test_hostile_fields(name: str, field: str, value: object, message: str, tmp_path: Path) -> None:
    case = golden(f"families/{name}")
    save_file(case.weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**case.config, field: value}))
    with pytest.raises(ConfigError, match=message) as error:
        load_encoder(tmp_path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("modernbert", {"layer_types": ["full_attention"] * 2 + ["other"]}, "layer_types is .*other"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types is .*each of the 3 layers"),
        ("modernbert", {"layer_types": None, "global_attn_every_n_layers": 0}, "global_attn_every_n_layers is 0"),
        (
            "modernbert",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_parameters.full_attention",
        ),
        ("modernbert", {"rope_parameters": [1]}, "rope_parameters is .*expected an object"),
        ("modernbert", {"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling is"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_theta": "x"}}}, "theta is 'x'"),
        ("nomic_bert", {"rope_parameters": {"rope_theta": 9.0, "partial_rotary_factor": 0.5}}, "rope_parameters is"),
        ("nomic_bert", {"rope_scaling": {"factor": 2}}, "rope_scaling is"),
        ("gte", {"rope_parameters": "x"}, "rope_parameters is 'x'"),
        ("gte", {"rope_parameters": {"rope_theta": -1.0}}, "theta is -1.0"),
        ("gte", {"num_attention_heads": 16}, "make heads of 1; expected an even number"),
    ],
)
def test_what_positions_and_layers_are_not_understood(family: str, fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FAMILIES[family].read_config({**golden(f"families/{family}").config, **fields})


@pytest.mark.parametrize("family", ["modernbert"])
def test_a_classifier_of_the_mean(folder: Path, edit_json, tmp_path: Path) -> None:
    edit_json(folder / "config.json", classifier_pooling="mean")
    model = MultiTaskModel.from_pretrained(folder)
    assert model.tasks["classification"].pooling == ("mean",)
    model.save(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["classifier_pooling"] == "mean"
    for path in (tmp_path / "ours").glob("tasks.*"):
        path.unlink()
    again = MultiTaskModel.from_pretrained(tmp_path / "ours")
    logits, expected = (one.predict(["a b c"]).logits["classification"] for one in (again, model))
    assert (logits == expected).all()
    edit_json(folder / "config.json", classifier_pooling="max")
    with pytest.raises(WeightsError, match="classifier_pooling is 'max'; expected 'cls' or 'mean'"):
        MultiTaskModel.from_pretrained(folder)


def test_nomic_s_own_names(tmp_path: Path) -> None:
    """What nomic-embed-text's config.json says is the same shape as transformers' own fields; the rest is refused."""
    own = {"model_type": "nomic_bert", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_inner": 3072, "n_positions": 8192,
           "layer_norm_epsilon": 1e-12, "activation_function": "swiglu", "rotary_emb_base": 1000, "prenorm": False,
           "rotary_emb_fraction": 1.0, "rotary_scaling_factor": None, "vocab_size": 30528, "type_vocab_size": 2,
           "resid_pdrop": 0.0, "attn_pdrop": 0.0}  # fmt: skip
    names = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072,
             "max_position_embeddings": 8192, "layer_norm_eps": 1e-12, "hidden_act": "silu", "vocab_size": 30528,
             "rope_parameters": {"rope_type": "default", "rope_theta": 1000}}  # fmt: skip
    source = tmp_path / "config.json"
    expected = encoder_config({"model_type": "nomic_bert", **names}, source)
    assert dataclasses.replace(encoder_config(own, source), attention_dropout=expected.attention_dropout) == expected
    for field, value in {"prenorm": True, "rotary_scaling_factor": 2.0, "activation_function": "geglu"}.items():
        with pytest.raises(ConfigError, match=f"{field} is"):
            encoder_config({**own, field: value}, source)
