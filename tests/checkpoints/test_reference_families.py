"""Random checkpoints of each family against transformers, and both against float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import golden
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer

from mtl import SentenceEncoder
from mtl.checkpoints.families import FAMILIES
from mtl.checkpoints.load import load_encoder
from mtl.errors import MtlError
from mtl.model.activations import ACTIVATIONS
from mtl.model.packing import PackedBatch

transformers = pytest.importorskip("transformers", reason="needs the reference extra")
pytestmark = pytest.mark.reference

SHAPE = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96,
         "max_position_embeddings": 200, "initializer_range": 0.25, "embedding_size": 64, "hidden_dim": 96,
         "pad_token_id": 1}  # fmt: skip


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """Wide matrices as they are drawn; norms, biases and tables of distances moved as well."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "relative" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


V3 = {"relative_attention": True, "position_biased_input": False, "pos_att_type": "p2c|c2p", "share_att_key": True,
      "norm_rel_ebd": "layer_norm", "position_buckets": 32, "max_relative_positions": -1}  # fmt: skip
OWN = {"deberta-v2": V3}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "small electra": ("electra", {"embedding_size": 24}),
    "deberta of the hub's buckets": ("deberta-v2", {**V3, "position_buckets": 256}),
    "deberta with projections of its own": ("deberta-v2", {**V3, "share_att_key": False, "norm_rel_ebd": "none",
                                            "position_biased_input": True, "type_vocab_size": 2}),
    "deberta without buckets": ("deberta-v2", {**V3, "position_buckets": -1, "max_relative_positions": 24}),
    "deberta of far distances": ("deberta-v2", {**V3, "position_buckets": 9, "max_relative_positions": 40}),
    "deberta of queries": ("deberta-v2", {**V3, "pos_att_type": ["c2p"], "share_att_key": False}),
    "deberta of keys": ("deberta-v2", {**V3, "pos_att_type": ["p2c"], "share_att_key": False}),
    "deberta of neither": ("deberta-v2", {**V3, "pos_att_type": None}),
    "nomic scaled linearly": ("nomic_bert", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0,
                              "factor": 3.0}}),
    "gte scaled linearly": ("gte", {"rope_parameters": {"rope_type": "linear", "rope_theta": 2e4, "factor": 2.5}}),
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 8.0 * 20000.0, "factor": 8.0 ** (2 / 16)}
# As published beside code of its own: what transformers' GTE is to write instead to compute the same
PUBLISHED = {"model_type": "new", "rope_theta": 20000, "rope_scaling": {"factor": 8.0, "type": "ntk"}, "pack_qkv": True,
             "position_embedding_type": "rope", "layer_norm_type": "layer_norm", "logn_attention_scale": False,
             "logn_attention_clip1": False, "unpad_inputs": False, "rope_parameters": None}  # fmt: skip
CASES = {**{family: (family, OWN.get(family, {})) for family in FAMILIES if family != "new"}, **VARIANTS}


@pytest.mark.parametrize("case", CASES)
def test_as_near_to_float64_as_transformers(case: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Of each text's hidden states alone; again through what we save, and transformers' reading of that."""
    torch.manual_seed(0)
    family, fields = CASES[case]
    config = transformers.AutoConfig.for_model(family, vocab_size=300, **{**SHAPE, **fields})
    theirs = randomized(transformers.AutoModel.from_config(config))
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(str(tmp_path / "theirs" / "tokenizer.json"))
    (tmp_path / "theirs" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    model = SentenceEncoder.from_pretrained(tmp_path / "theirs")
    model.save(tmp_path / "ours")
    again, info = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {name for name in info["missing_keys"] if not name.startswith("pooler.")} == set()
    assert not info["unexpected_keys"]
    rows = [torch.randint(5, 300, (length,)).tolist() for length in (3, 3, 9, 40, 40, 157)]
    with torch.no_grad():
        exact = [states(theirs.double(), row) for row in rows]
        expected = [states(theirs.float(), row) for row in rows]
        ours = model.program().encoder(PackedBatch.pack(rows)).split(list(map(len, rows)))
        resaved = [states(again.eval(), row) for row in rows]
    allowed = max(1.5 * distance(expected, exact), 5e-6)
    assert distance(ours, exact) <= allowed
    assert distance(resaved, exact) <= max(allowed, 1e-5)


@pytest.mark.parametrize("types", [0, 1])
def test_gte_as_published(types: int, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Scaled by NTK: theta times a factor, and every rate over a power of it, which transformers calls linear."""
    torch.manual_seed(0)
    shape = {**SHAPE, "rope_parameters": LINEAR, "type_vocab_size": types, "vocab_size": 300}
    theirs = randomized(transformers.AutoModel.from_config(transformers.AutoConfig.for_model("gte", **shape)))
    theirs.save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **PUBLISHED}))
    model = SentenceEncoder.from_pretrained(tmp_path)
    model.save(tmp_path / "ours")
    again = SentenceEncoder.from_pretrained(tmp_path / "ours")
    rows = [torch.randint(5, 300, (length,)).tolist() for length in (3, 9, 40, 157)]
    with torch.no_grad():
        exact = [states(theirs.double(), row) for row in rows]
        expected = [states(theirs.float(), row) for row in rows]
        for found in (model, again):
            ours = found.program().encoder(PackedBatch.pack(rows)).split(list(map(len, rows)))
            assert distance(ours, exact) <= max(1.5 * distance(expected, exact), 5e-6)


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 20), st.sampled_from([40, 10**9, 10**30, 0.5, 1.0, 2.0, 1e-5, 0.3, -0.1]),
    st.sampled_from(["", "gelu", "relu", "silu", "gelu_new", "tanh", "absolute", "rope", "alibi", "none", "layer_norm",
                     "c2p", "p2c|c2p", "default", "ntk", "1", "mean", "mish"]),
    st.lists(st.sampled_from(["full_attention", "sliding_attention", "chunked_attention", "c2p", 1]), max_size=4),
    st.dictionaries(
        st.sampled_from(["type", "rope_type", "rope_theta", "factor", "full_attention", "partial_rotary_factor"]),
        st.sampled_from(["default", "linear", "ntk", 2.0, 500.0, {"rope_type": "default", "rope_theta": 9.0}]),
        max_size=3,
    ),
)  # fmt: skip


def fields_of(family: str) -> list[str]:
    """What config.json may say that could change a vector: of the family, and of others."""
    own = FAMILIES[family]
    mine = {*own.config, *own.aliases, *own.fixed, *own.inert, "type_vocab_size", "head_dim", "tie_word_embeddings"}
    return sorted(mine - {"auto_map"})


def near(value: Any) -> st.SearchStrategy[Any]:
    """What a field could well be where it is something of this kind."""
    kinds: dict[type, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(0, 20),
        float: st.sampled_from([0.0, 1e-12, 1e-6, 0.3, 1]),
        str: st.sampled_from([*ACTIVATIONS, "none"]),
    }
    return kinds.get(type(value), st.just(value))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "new"])
def test_any_config_is_the_same_vectors_or_one_line(family: str, tmp_path: Path) -> None:
    """Whatever one or two fields say, we compute what transformers does, or refuse it in one line."""
    case = golden(f"families/{family}")
    prefix = FAMILIES[family].prefix
    trunk = {k.removeprefix(prefix): x for k, x in case.weights.items() if k.startswith(prefix)}
    save_file(trunk, tmp_path / "model.safetensors", metadata={"format": "pt"})
    rows = [row[mask.bool()].tolist() for row, mask in zip(case.ids, case.mask, strict=True)]
    equal = 0

    @settings(max_examples=80, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
    @given(
        st.lists(
            st.sampled_from(fields_of(family)).flatmap(
                lambda name: st.tuples(st.just(name), st.one_of(near(case.config.get(name)), ODD))
            ),
            min_size=1,
            max_size=2,
        )
    )
    def compare(drawn: list[tuple[str, Any]]) -> None:
        nonlocal equal
        changes = dict(drawn)
        (tmp_path / "config.json").write_text(json.dumps({**case.config, **changes}))
        try:
            ours, *_ = load_encoder(tmp_path)
        except MtlError as error:
            assert str(error).isprintable()  # noqa: PT017
            return
        with torch.no_grad():
            found = ours(PackedBatch.pack(rows)).split(list(map(len, rows)))
        try:
            theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
            expected = [states(theirs, row) for row in rows]
        except Exception:  # theirs refuses it, in whatever way
            return
        equal += 1
        assert distance(found, [x.double() for x in expected]) <= 1e-5, changes

    compare()
    assert equal > 3


def states(model: Any, row: list[int]) -> torch.Tensor:
    return model(torch.tensor([row])).last_hidden_state[0]


def distance(found: Any, exact: list[torch.Tensor]) -> float:
    return max(float((a.double() - b.double()).abs().max()) for a, b in zip(found, exact, strict=True))
