"""Nothing is computed as something that it is not: whatever a program cannot stand for runs as it is, and is named."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from mtl import MultiTaskModel, SentenceEncoder
from mtl.errors import WeightsError
from mtl.kernels import understood
from mtl.kernels.compile import Plain
from mtl.kernels.vectors import Vectors
from mtl.kernels.watched import Watched
from mtl.model.encoder import DistilBert, SelfAttention, TransformerBlock
from mtl.model.interface import Encoder
from mtl.model.packing import PackedBatch
from mtl.model.pooling import Dense, Normalize, Pooling
from mtl.tasks.spec import TaskSpec

TEXTS = ["a b c", "d", "e f g h a b", "", "a b d", "g"]
Change = Callable[[SentenceEncoder], object]


class Lora(nn.Module):
    """As PEFT wraps a linear layer: it has the layer's ``weight``, and a forward pass of its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


class Wrapper(nn.Module):
    """It has no weight at all."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.inner(*inputs) * 1.5


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


class Median(nn.Module):
    """A pooling of one's own."""

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        return torch.stack([text.median(dim=0).values for text in x.split(batch.lengths)])


class Bag(Encoder):
    """A trunk of one's own: word embeddings, mixed within each text."""

    WORDS, BLOCKS = "table", "layers"

    def __init__(self, config: object) -> None:
        super().__init__()
        self.config = config
        self.table, self.layers = nn.Embedding(config.vocab_size, config.dim), nn.ModuleList()

    def embed(self, batch: PackedBatch) -> Tensor:
        return self.table(batch.ids)

    def run(self, x: Tensor, batch: PackedBatch, start: int = 0, stop: int | None = None) -> Tensor:
        return torch.cat([text.cumsum(dim=0) for text in x.split(batch.lengths)])

    def forward(self, batch: PackedBatch) -> Tensor:
        return self.run(self.embed(batch), batch)


class Loud(SentenceEncoder):
    def forward(self, batch: PackedBatch) -> Tensor:
        return super().forward(batch) * 3


def block(model: SentenceEncoder, i: int = 0) -> TransformerBlock:
    return model.encoder.blocks[i]


def scaled(layer: nn.Linear) -> Scaled:
    other = Scaled(layer.in_features, layer.out_features)
    other.load_state_dict(layer.state_dict())
    return other


def weight_norm(model: SentenceEncoder) -> None:
    layer = nn.utils.parametrizations.weight_norm(block(model).ffn.lin2)
    layer.parametrizations.weight.original0.data.mul_(2)


def pruned(model: SentenceEncoder) -> None:
    prune.l1_unstructured(block(model).ffn.lin1, "weight", amount=0.5)


def old_weight_norm(model: SentenceEncoder) -> None:
    nn.utils.weight_norm(block(model).ffn.lin1).weight_g.data.mul_(2)


def doubled(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output * 2


def own_forward(model: SentenceEncoder) -> None:
    layer = block(model).attention.out_lin
    plain = layer.forward
    layer.forward = lambda x: plain(x) * 2


def set_at(path: str, make: Callable[[nn.Module], object]) -> Change:
    def change(model: SentenceEncoder) -> None:
        outer, _, name = path.rpartition(".")
        part = model.get_submodule(outer)
        setattr(part, name, make(getattr(part, name)))

    return change


ATTENTION = "encoder.transformer.layer.0.attention"
CHANGES: dict[str, tuple[Change, str]] = {
    "LoRA at q_lin": (set_at(f"{ATTENTION}.q_lin", Lora), f"attention.q_lin is a {__name__}.Lora, not a Linear"),
    "LoRA at v_lin": (set_at(f"{ATTENTION}.v_lin", Lora), f"attention.v_lin is a {__name__}.Lora"),
    "LoRA at lin1": (
        set_at("encoder.transformer.layer.1.ffn.lin1", Lora),
        f"layer.1.ffn.lin1 is a {__name__}.Lora",
    ),
    "a wrapper": (set_at(f"{ATTENTION}.out_lin", Wrapper), f"attention.out_lin is a {__name__}.Wrapper"),
    "a wrapped norm": (set_at("encoder.embeddings.LayerNorm", Wrapper), "embeddings.LayerNorm is a"),
    "a wrapped block": (set_at("encoder.transformer.layer.1", Wrapper), "transformer.layer.1 is a"),
    "a wrapped trunk's attention": (set_at(ATTENTION, Wrapper), "layer.0.attention is a"),
    "a subclass": (set_at("encoder.transformer.layer.0.ffn.lin1", scaled), f"ffn.lin1 is a {__name__}.Scaled"),
    "an activation": (
        set_at("encoder.transformer.layer.0.ffn.activation", lambda _: torch.tanh),
        "has another activation",
    ),
    "an eps": (set_at("encoder.transformer.layer.0.sa_layer_norm.eps", lambda _: 0.1), "has another eps"),
    "heads": (set_at(f"{ATTENTION}.n_heads", lambda _: 1), "has another n_heads"),
    "weight norm": (weight_norm, "lin2 is a torch.nn.utils.parametrize.ParametrizedLinear"),
    "old weight norm": (old_weight_norm, "ffn.lin1 has a weight of its own"),
    "pruning": (pruned, "ffn.lin1 has a weight of its own"),
    "a hook": (lambda m: block(m).attention.k_lin.register_forward_hook(doubled), "k_lin has a forward hook"),
    "a hook on a block": (lambda m: block(m, 1).register_forward_hook(doubled), "layer.1 has a forward hook"),
    "a hook on the trunk": (lambda m: m.encoder.register_forward_hook(doubled), "DistilBert: it has a forward hook"),
    "a pre-hook": (
        lambda m: block(m).ffn.lin2.register_forward_pre_hook(lambda part, x: (x[0] * 2,)),
        "lin2 has a forward pre-hook",
    ),
    "a backward hook": (
        lambda m: block(m).ffn.register_full_backward_hook(lambda *_: None),
        "ffn has a backward hook",
    ),
    "a forward of its own": (own_forward, "out_lin has a forward of its own"),
    "a buffer": (lambda m: block(m).ffn.register_buffer("more", torch.ones(1)), "ffn holds more, not nothing"),
    "a part more": (lambda m: block(m).ffn.add_module("more", nn.Linear(2, 2)), "ffn holds lin1, lin2, dropout, more"),
    "no bias": (set_at(f"{ATTENTION}.k_lin.bias", lambda _: None), "k_lin lacks a part"),
    "a smaller table": (
        set_at("encoder.embeddings.position_embeddings.weight", lambda w: nn.Parameter(w[:12].detach())),
        "has a weight of another shape, (12, 12)",
    ),
    "a pooling of one's own": (set_at("pooling", lambda _: Median()), f"Median: it is a {__name__}.Median"),
    "a hook on the pooling": (lambda m: m.pooling.register_forward_hook(doubled), "Pooling: it has a forward hook"),
    "a layer of one's own": (lambda m: m.after.append(Halved()), f"Halved: it is a {__name__}.Halved"),
    "a Dense with LoRA": (
        lambda m: set_at("after.0.linear", Lora)(m),
        f"Dense: linear is a {__name__}.Lora, of which no program is known",
    ),
    "a hook on what follows": (lambda m: m.after.register_forward_hook(doubled), "Sequential: it has a forward hook"),
    "a hook on the whole": (lambda m: m.register_forward_hook(doubled), "SentenceEncoder: it has a forward hook"),
    "a trunk of one's own": (
        set_at("encoder", lambda trunk: Bag(trunk.config)),
        f"Bag: it is a {__name__}.Bag, of which no program is known",
    ),
}


@pytest.fixture
def model(tiny: SentenceEncoder) -> SentenceEncoder:
    """With a layer after the pooling, in eval mode."""
    torch.manual_seed(3)
    tiny.after.append(Dense(12, 7).eval())
    return tiny


def plainly(model: SentenceEncoder, texts: list[str]) -> np.ndarray:
    """Text by text, by the module's own forward pass."""
    with torch.no_grad():
        return np.concatenate([model(PackedBatch.pack(model.tokenizer([text]).rows)).numpy() for text in texts])


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_what_is_not_understood_runs_as_it_is(
    model: SentenceEncoder, name: str, pooling: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The vectors before the change were a program's, those after it are the module's, and one line says so."""
    model.pooling = Pooling(pooling)
    before = model.encode(TEXTS)
    np.testing.assert_allclose(before, plainly(model, TEXTS), atol=1e-6)
    assert not caplog.messages
    change, line = CHANGES[name]
    change(model)
    after = model.encode(TEXTS)
    np.testing.assert_allclose(after, plainly(model, TEXTS), atol=1e-6)
    model.encode(TEXTS[:2])
    assert len(caplog.messages) == 1
    assert line in caplog.text
    assert "what is not understood runs as it is" in caplog.text


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_in_every_precision(model: SentenceEncoder, precision: str, caplog: pytest.LogCaptureFixture) -> None:
    model.precision = precision
    set_at(f"{ATTENTION}.q_lin", Lora)(model)
    np.testing.assert_allclose(model.encode(TEXTS), plainly(model, TEXTS), atol=1e-6)
    assert len(caplog.messages) == 1


def test_a_subclass_of_the_model(checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    loud = Loud.from_checkpoint(checkpoint)
    np.testing.assert_allclose(loud.encode(TEXTS), plainly(loud, TEXTS), atol=1e-6)
    assert f"Loud: it is a {__name__}.Loud, whose forward is not SentenceEncoder.forward" in caplog.text


@pytest.mark.parametrize("kind", [SelfAttention, nn.Linear, DistilBert, SentenceEncoder])
def test_a_class_whose_forward_is_replaced(
    model: SentenceEncoder, kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model.encode(TEXTS)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda part, *inputs: forward(part, *inputs) * 2)
    np.testing.assert_allclose(model.encode(TEXTS), plainly(model, TEXTS), atol=1e-6)
    assert len(caplog.messages) == 1


def test_hooks_of_all_modules(model: SentenceEncoder, caplog: pytest.LogCaptureFixture) -> None:
    before = model.encode(TEXTS)
    handle = nn.modules.module.register_module_forward_hook(
        lambda part, x, y: y * 1.1 if type(part) is nn.Linear else y
    )
    try:
        np.testing.assert_allclose(model.encode(TEXTS), plainly(model, TEXTS), atol=1e-6)
    finally:
        handle.remove()
    assert "has the hooks of all modules" in caplog.text
    assert np.array_equal(model.encode(TEXTS), before)


def test_a_program_again(model: SentenceEncoder, caplog: pytest.LogCaptureFixture) -> None:
    """When what stood in the way is gone; and a line again, when it is back."""
    before = model.encode(TEXTS)
    for _ in range(2):
        handle = block(model).ffn.lin1.register_forward_hook(doubled)
        assert not np.allclose(model.encode(TEXTS), before, atol=1e-3)
        handle.remove()
        assert np.array_equal(model.encode(TEXTS), before)
        assert isinstance(model.program(), Vectors)
        assert not model.program().plain
    assert len(caplog.messages) == 2


def test_a_module_that_counts_its_calls_is_named_once(model: SentenceEncoder, caplog: pytest.LogCaptureFixture) -> None:
    class Counting(Lora):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    set_at(f"{ATTENTION}.q_lin", Counting)(model)
    for _ in range(3):
        model.encode(TEXTS)
    program = model.program()
    model.encode(TEXTS)
    assert model.program() is program
    assert len(caplog.messages) == 1


def test_in_training_mode_it_runs_in_eval_mode(model: SentenceEncoder) -> None:
    """Its own dropout does nothing, and the mode comes back."""
    block(model).ffn.lin1 = nn.Sequential(block(model).ffn.lin1, nn.Dropout(0.5))
    expected = plainly(model.eval(), TEXTS)
    model.train()
    block(model).ffn.eval()
    np.testing.assert_allclose(model.encode(TEXTS * 20, threads=2), np.concatenate([expected] * 20), atol=1e-6)
    assert model.training
    assert block(model).attention.training
    assert not block(model).ffn.training


def test_values_that_eval_mode_does_not_use(model: SentenceEncoder, caplog: pytest.LogCaptureFixture) -> None:
    model.encode(TEXTS)
    block(model).attention.dropout = 0.0
    block(model).ffn.dropout.p = 0.3
    model.encoder.words.sparse = True
    block(model).note = "mine"
    assert isinstance(model.program(), Vectors)
    assert not model.program().plain
    assert not caplog.messages


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize(
    "path",
    [
        "encoder.transformer.layer.0.attention.v_lin.bias",
        "encoder.transformer.layer.1.ffn.lin2.bias",
        "encoder.transformer.layer.1.output_layer_norm.weight",
        "encoder.embeddings.LayerNorm.bias",
        "after.0.linear.bias",
    ],
)
def test_writing_through_data(model: SentenceEncoder, path: str, precision: str) -> None:
    """It leaves no count, and biases are copied: they are compared by content. One value is enough."""
    model.precision = precision
    before = model.encode(TEXTS)
    model.get_parameter(path).data[5] += 1
    after = model.encode(TEXTS)
    assert not np.allclose(after, before, atol=1e-3)
    model.compiled.clear()
    assert np.array_equal(model.encode(TEXTS), after)
    if precision == "fp32":
        np.testing.assert_allclose(after, plainly(model, TEXTS), atol=1e-6)


@pytest.mark.parametrize(
    "change",
    {
        "a block more": lambda m: m.encoder.blocks.append(copy.deepcopy(block(m))),
        "a block less": lambda m: m.encoder.blocks.__delitem__(1),
        "blocks change places": lambda m: m.encoder.blocks.insert(0, m.encoder.blocks.pop(1)),
        "a layer replaced": lambda m: set_at(f"{ATTENTION}.v_lin", lambda part: nn.Linear(12, 12))(m),
        "a layer added": lambda m: m.after.append(Normalize()),
        "a pooling replaced": lambda m: set_at("pooling", lambda part: Pooling("max"))(m),
        "a matrix turned": lambda m: setattr(
            block(m).attention.v_lin.weight, "data", block(m).attention.v_lin.weight.data.T
        ),
        "columns of a matrix": lambda m: block(m).attention.v_lin.weight.data[:, 4:8].zero_(),
        "rows of a matrix": lambda m: block(m).attention.v_lin.weight.data[3:7].zero_(),
        "weights set in place": lambda m: nn.init.normal_(block(m).ffn.lin1.weight),
        "weights loaded": lambda m: m.load_state_dict({k: x * 1.1 for k, x in m.state_dict().items()}),
        "weights assigned": lambda m: m.load_state_dict({k: x * 1.1 for k, x in m.state_dict().items()}, assign=True),
        "in inference mode": lambda m: torch.inference_mode()(lambda: block(m).ffn.lin1.weight.data.mul_(2))(),
        "weights shared": lambda m: setattr(block(m, 1).ffn.lin1, "weight", block(m).ffn.lin1.weight),
    }.items(),
    ids=lambda change: change[0],
)
def test_whatever_changes_is_seen(model: SentenceEncoder, change: tuple[str, Change]) -> None:
    before = model.encode(TEXTS)
    change[1](model)
    after = model.encode(TEXTS)
    np.testing.assert_allclose(after, plainly(model, TEXTS), atol=1e-6)
    assert after.shape == before.shape
    assert not np.allclose(after, before, atol=1e-4)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_part_in_any_place(data: st.DataObject) -> None:
    """Any module of an encoder, given a hook, a wrapper, a subclass or another attribute, is found and named."""
    from mtl.model.config import EncoderConfig

    config = EncoderConfig(vocab_size=30, max_position_embeddings=16, n_layers=2, n_heads=2, dim=8, hidden_dim=12)
    expected, encoder = DistilBert(config), DistilBert(config)
    assert understood.difference(encoder, expected) is None
    name, part = data.draw(st.sampled_from([*encoder.named_modules()]))
    how = data.draw(
        st.sampled_from(["hook", "subclass", "forward", "child", "buffer", "parameter", "dtype", "settings"])
    )
    if how == "hook":
        part.register_forward_hook(lambda *_: None)
    elif how == "subclass":
        part.__class__ = type("Mine", (type(part),), {})
    elif how == "forward":
        part.forward = lambda *_: None
    elif how == "child":
        part.add_module("more", nn.Identity())
    elif how == "buffer":
        part.register_buffer("more", torch.ones(1))
    elif how == "parameter":
        part.register_parameter("more", nn.Parameter(torch.ones(1)))
    elif how == "dtype" and [*part.parameters()]:
        part.double()
    elif vars(part).keys() - understood.OF_EVERY_MODULE - understood.TRAINING_ONLY:
        setting = sorted(vars(part).keys() - understood.OF_EVERY_MODULE - understood.TRAINING_ONLY)[0]
        setattr(part, setting, "another")
    else:
        return
    found = understood.difference(encoder, expected)
    assert found is not None
    assert found.name.startswith(name)


def test_several_tasks(tiny: SentenceEncoder, caplog: pytest.LogCaptureFixture) -> None:
    """The same of heads and their poolings, through predict and the metrics."""
    model = MultiTaskModel(tiny, [TaskSpec("mood", ("good", "bad"), pooling=("attention",)), TaskSpec("x", ("a", "b"))])
    model.eval()
    batch = PackedBatch.pack(tiny.tokenizer(TEXTS).rows)
    for change in (
        lambda: model.branches["mood"].head.classifier.register_forward_hook(doubled),
        lambda: set_at("branches.x.head.classifier", Lora)(model),
        lambda: set_at("branches.mood.pooling.score", scaled)(model),
        lambda: model.branches["x"].register_forward_hook(doubled),
        lambda: model.encoder.blocks[1].register_forward_hook(doubled),
        lambda: model.register_forward_hook(lambda part, x, y: (y[0] * 2, y[1])),
    ):
        caplog.clear()
        change()
        found = model.predict(TEXTS)
        with torch.no_grad():
            embeddings, logits = model(batch)
        np.testing.assert_allclose(found.embeddings, embeddings, atol=1e-6)
        for name, x in logits.items():
            np.testing.assert_allclose(found.logits[name], x, atol=1e-6)
            with torch.no_grad():
                np.testing.assert_allclose(model.outputs_of(name)(batch), x, atol=1e-6)
        model.predict(TEXTS)
        assert len(caplog.messages) == 1


def test_the_watch_is_cheap(minilm: SentenceEncoder) -> None:
    """Measured: 0.1 ms. Today's models have some hundred tensors."""
    import time

    watched = Watched(minilm, [])
    times = []
    for _ in range(50):
        start = time.perf_counter()
        assert watched.unchanged()
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-3


def test_parametrizations_are_other_types(tiny: SentenceEncoder) -> None:
    layer = block(tiny).ffn.lin1
    parametrize.register_parametrization(layer, "weight", Halved())
    assert isinstance(tiny.program().encoder, Plain)
    np.testing.assert_allclose(tiny.encode(TEXTS), plainly(tiny, TEXTS), atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        *("LoRA at q_lin", "a wrapper", "a wrapped block", "a subclass", "an activation", "heads", "weight norm"),
        *("pruning", "a forward of its own", "a buffer", "no bias", "a pooling of one's own", "a layer of one's own"),
        *("a Dense with LoRA", "a trunk of one's own"),
    ],
)
def test_what_a_folder_could_not_say_is_not_saved(model: SentenceEncoder, name: str, tmp_path: Path) -> None:
    CHANGES[name][0](model)
    with pytest.raises(WeightsError) as error:
        model.save(tmp_path / "model")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


def test_an_adapter_in_a_head_is_not_saved(tiny: SentenceEncoder, tmp_path: Path) -> None:
    model = MultiTaskModel(tiny, [TaskSpec("mood", ("good", "bad"))])
    model.branches["mood"].head.classifier = Lora(model.branches["mood"].head.classifier)
    with pytest.raises(
        WeightsError, match="LinearHead: classifier is a .*Lora.*: merge it into the weights, or take it"
    ):
        model.save(tmp_path / "model")


def test_hooks_are_no_reason_not_to_save(model: SentenceEncoder, tmp_path: Path) -> None:
    before = model.encode(TEXTS)
    model.encoder.register_forward_hook(doubled)
    model.save(tmp_path / "model")
    assert np.array_equal(SentenceEncoder.from_pretrained(tmp_path / "model").encode(TEXTS), before)


@pytest.mark.reference
def test_lora_by_peft(tiny: SentenceEncoder, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """PEFT's own library, in place: as it is, merged, and unloaded."""
    peft = pytest.importorskip("peft")
    before = tiny.encode(TEXTS)
    config = peft.LoraConfig(r=4, target_modules=["q_lin", "v_lin"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, tiny.encoder)
    adapted = tiny.encode(TEXTS)
    assert not np.allclose(adapted, before, atol=1e-3)
    np.testing.assert_allclose(adapted, plainly(tiny.eval(), TEXTS), atol=1e-6)
    assert len(caplog.messages) == 1
    assert "attention.q_lin is a peft.tuners.lora.layer.Linear, not a Linear" in caplog.text
    with pytest.raises(WeightsError, match="merge it into the weights"):
        tiny.save(tmp_path / "model")
    layers = [part for part in tiny.encoder.modules() if isinstance(part, peft.tuners.lora.LoraLayer)]
    for layer in layers:
        layer.merge()
    np.testing.assert_allclose(tiny.encode(TEXTS), adapted, atol=1e-5)
    for block in tiny.encoder.blocks:
        block.attention.q_lin, block.attention.v_lin = (
            part.get_base_layer() for part in (block.attention.q_lin, block.attention.v_lin)
        )
    np.testing.assert_allclose(tiny.encode(TEXTS), adapted, atol=1e-5)
    tiny.save(tmp_path / "model")
    assert np.array_equal(SentenceEncoder.from_pretrained(tmp_path / "model").encode(TEXTS), tiny.encode(TEXTS))
