"""How a model is computed is not what it is: programs are made of its parameters, follow them, and are never saved."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn

from mtl import MultiTaskModel, SentenceEncoder
from mtl.encode.precision import effective
from mtl.errors import InputError
from mtl.kernels import linear
from mtl.kernels.check import products
from mtl.kernels.compile import compile
from mtl.kernels.int8 import Calibration
from mtl.kernels.linear import Packed, has_packed
from mtl.kernels.watched import Watched
from mtl.model.packing import PackedBatch
from mtl.model.pooling import Dense
from mtl.tasks.spec import TaskSpec

TEXTS = ["a b c", "d", "e f g h a b", ""]
PRECISIONS = ["fp32", "bf16", "int8"]
needs_packed = pytest.mark.skipif(not has_packed(), reason="this build of torch has no prepacked product")


@needs_packed
@pytest.mark.parametrize(("features", "outputs"), [(12, 20), (384, 1536), (1536, 384), (768, 64)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_has_the_same_bits_whatever_stands_beside_it(features: int, outputs: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(outputs, features, generator=generator), torch.randn(outputs, generator=generator)
    x = torch.randn(600, features, generator=generator)
    layer = Packed(weight, bias)
    before = torch.get_num_threads()
    with torch.inference_mode():
        whole = layer(x)
        torch.testing.assert_close(whole, x @ weight.T + bias, atol=2e-4, rtol=1e-5)
        torch.set_num_threads(threads)
        try:
            for rows in (1, 2, 3, 5, 8, 13, 16, 17, 31, 64, 100, 255, 512):
                assert torch.equal(layer(x[77 : 77 + rows].contiguous()), whole[77 : 77 + rows]), f"{rows} rows"
        finally:
            torch.set_num_threads(before)


@pytest.mark.skipif(not has_packed(torch.bfloat16), reason="this build of torch has no prepacked product in bf16")
@pytest.mark.parametrize("amx", [True, False])
def test_with_amx_sums_of_bf16_are_taken_in_pieces(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As AMX needs it, on any processor: the same product, to the rounding of a bf16 result for each piece."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(shape, generator=generator) for shape in ((96, 1000), (96,), (40, 1000)))
    layer = Packed(weight.bfloat16(), bias.bfloat16())
    assert len(layer.weights) == (3 if amx else 1)
    assert len(Packed(weight, bias).weights) == 1
    exact = x.bfloat16().double() @ weight.bfloat16().double().T + bias.bfloat16().double()
    with torch.inference_mode():
        product = layer(x.bfloat16())
        for rows in (1, 2, 7, 33):
            assert torch.equal(layer(x[:rows].bfloat16()), product[:rows])
    error = (product.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < (0.0035 if amx else 0.0025)  # measured: 0.0026 and 0.0017


def test_a_program_shares_what_needs_no_other_form(tiny: SentenceEncoder) -> None:
    program = compile(tiny.encoder)
    assert program.words.data_ptr() == tiny.encoder.words.weight.data_ptr()
    assert len([*products(program)]) == (2 * 4 if has_packed() else 0)  # q, k and v are one
    batch = PackedBatch.pack([[2, 5, 6, 3], [2, 3]])
    with torch.inference_mode():
        torch.testing.assert_close(program(batch), tiny.encoder(batch), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_program_is_run_in_parts(tiny: SentenceEncoder, precision: str) -> None:
    """From any block to any other, and the first token of each text alone."""
    rows = [[2, 5, 6, 3], [2, 8, 3], [2, 9, 3], [2, 3]]
    calibration = Calibration(rows) if precision == "int8" else None
    program, batch = compile(tiny.encoder, precision, calibration), PackedBatch.pack(rows)
    with torch.inference_mode():
        whole, x = program(batch), program.embed(batch)
        for depth in (0, 1, 2):
            assert torch.equal(program.run(program.run(x, batch, stop=depth), batch, depth), whole)
        first = program.run(x, batch, first=True)
        close = {"fp32": 1e-5, "bf16": 3e-2, "int8": 5e-2}[precision]
        torch.testing.assert_close(first, whole[batch.firsts], atol=close, rtol=0)
        assert torch.equal(program.run(program.run(x, batch, 0, -1), batch, -1, first=True), first)
    assert program(PackedBatch.pack([])).shape == (0, 12)


def test_without_the_kernel_layers_stay_plain(tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor, or in a build of torch, that has no prepacked product."""
    expected = tiny.encode(TEXTS)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    tiny.compiled.clear()
    assert not [*products(tiny.program())]
    np.testing.assert_allclose(tiny.encode(TEXTS), expected, atol=1e-6)
    assert not linear.has_packed(torch.bfloat16)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("how", ["in place", "through data", "replaced", "loaded", "assigned"])
def test_the_vectors_follow_the_parameters(tiny: SentenceEncoder, precision: str, how: str) -> None:
    tiny.precision = precision
    before = tiny.encode(TEXTS)
    layer = tiny.encoder.transformer.layer[0].ffn.lin1
    doubled = layer.weight.detach() * 2
    with torch.no_grad():
        if how == "in place":
            layer.weight.mul_(2)
        elif how == "through data":
            layer.weight.data.mul_(2)
        elif how == "replaced":
            layer.weight = nn.Parameter(doubled)
        else:
            state = {**tiny.state_dict(), "encoder.transformer.layer.0.ffn.lin1.weight": doubled}
            tiny.load_state_dict(state, assign=how == "assigned")
    after = tiny.encode(TEXTS)
    assert not np.allclose(before, after, atol=1e-3)
    tiny.compiled.clear()
    assert np.array_equal(tiny.encode(TEXTS), after)


def test_a_program_is_made_once(tiny: SentenceEncoder) -> None:
    program = tiny.program()
    tiny.encode(TEXTS)
    assert tiny.program() is program
    tiny.train()
    assert tiny.compiled.program is None
    assert tiny.training
    tiny.encode(TEXTS)
    assert tiny.training  # inference has its own mode


@pytest.mark.parametrize("precision", PRECISIONS)
def test_copies_and_pickles_compute_for_themselves(tiny: SentenceEncoder, precision: str) -> None:
    tiny.precision = precision
    expected = tiny.encode(TEXTS)
    size = len(pickle.dumps(tiny.encoder))
    assert np.array_equal(copy.deepcopy(tiny).encode(TEXTS), expected)
    again = pickle.loads(pickle.dumps(tiny))
    assert np.array_equal(again.encode(TEXTS), expected)
    assert len(pickle.dumps(tiny.encoder)) == size
    other = copy.deepcopy(tiny)
    with torch.no_grad():
        other.encoder.embeddings.word_embeddings.weight.mul_(2)
    assert np.array_equal(tiny.encode(TEXTS), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_saving_writes_the_fp32_parameters(tiny: SentenceEncoder, precision: str, tmp_path) -> None:
    tiny.precision = precision
    tiny.encode(TEXTS)
    tiny.save(tmp_path / "model")
    again = SentenceEncoder.from_pretrained(tmp_path / "model")
    assert all(torch.equal(x, tiny.state_dict()[name]) for name, x in again.state_dict().items())
    assert {x.dtype for x in again.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_several_tasks_predict_and_save_in_any_precision(tiny: SentenceEncoder, precision: str, tmp_path) -> None:
    model = MultiTaskModel(tiny, [TaskSpec("mood", ("good", "bad")), TaskSpec("value", kind="regression")])
    expected = model.predict(TEXTS)
    assert model.training  # a new one is in training mode, and predicts all the same
    tiny.precision = precision
    found = model.predict(TEXTS)
    for name, logits in found.logits.items():
        np.testing.assert_allclose(logits, expected.logits[name], atol=0.3)
        assert logits.dtype == np.float32
    assert np.array_equal(model.predict(TEXTS).logits["mood"], found.logits["mood"])
    model.save(tmp_path / "model")
    again = MultiTaskModel.from_pretrained(tmp_path / "model")
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in again.state_dict().items())


def test_many_threads_share_one_program(tiny: SentenceEncoder) -> None:
    expected = tiny.encode(TEXTS)
    tiny.compiled.clear()
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(tiny.encode(TEXTS))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(np.array_equal(vectors, expected) for vectors in found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_type(tiny: SentenceEncoder, dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    """They run as they are; and in float32 again, a program does."""
    program, before = tiny.program(), tiny.encode(TEXTS)
    tiny.to(dtype)
    vectors = tiny.encode(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, before, atol=0.05)
    assert len(caplog.messages) == 1
    assert f"of {str(dtype)[6:]}, not float32" in caplog.text
    assert "what is not understood runs as it is" in caplog.text
    tiny.to(torch.float32)
    assert tiny.program() is not program
    np.testing.assert_allclose(tiny.encode(TEXTS), before, atol=0.05)


def test_a_layer_more(tiny: SentenceEncoder) -> None:
    before, layer = tiny.encode(["a b"], as_tensor=True), Dense(12, 5, activation="Identity")
    tiny.after.append(layer)
    np.testing.assert_allclose(tiny.encode(["a b"]), layer(before).detach(), rtol=1e-4)


def test_int8_of_weights_that_are_no_float32(tiny: SentenceEncoder) -> None:
    tiny.precision = "int8"
    with pytest.raises(InputError, match="precision is 'int8' and the weights are float16; expected float32"):
        tiny.half().encode("a")


def test_what_is_watched(tiny: SentenceEncoder) -> None:
    watched = Watched(tiny, [])
    assert watched.unchanged()
    tiny.encoder.transformer.layer[0] = tiny.encoder.transformer.layer[1]
    assert not watched.unchanged()


@pytest.mark.parametrize(
    ("precision", "device", "message"),
    [
        ("fp64", "cpu", "precision is 'fp64'; expected one of fp32, bf16, fp16, int8, auto"),
        ("fp16", "cpu", "precision is 'fp16' and device 'cpu'; expected a GPU"),
        ("int8", "meta", "device is 'meta'; expected cpu, cuda, or cuda:1 and so on"),
    ],
)
def test_a_precision_that_is_not_to_be_had(folder, precision: str, device: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SentenceEncoder.from_pretrained(folder, device=device, precision=precision)


def test_int8_is_for_a_cpu() -> None:
    with pytest.raises(InputError, match="precision is 'int8' and device 'meta'; expected a CPU"):
        effective("int8", torch.device("meta"))


def test_no_int8_kernel(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtl.kernels.int8 import largest_weight

    def none(*arguments: object) -> None:
        raise RuntimeError("not built")

    largest_weight.cache_clear()
    monkeypatch.setattr(torch.ops.onednn, "qlinear_prepack", none)
    with pytest.raises(InputError, match="precision is 'int8'; this build of torch has no such kernel"):
        SentenceEncoder.from_pretrained(folder, precision="int8")
    largest_weight.cache_clear()


@pytest.mark.parametrize("native", [True, False])
def test_auto(folder, native: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("mtl.encode.precision.native_bf16", lambda device: native)
    assert SentenceEncoder.from_pretrained(folder, precision="auto").precision == ("bf16" if native else "fp32")
    SentenceEncoder.from_pretrained(folder, precision="bf16")
    assert ("bf16 is not native to this processor and will be slow" in caplog.text) == (not native)


def test_bf16_by_its_error_budget(minilm: SentenceEncoder) -> None:
    """Emulated where the processor has none; within 3 times the rounding of the number format."""
    low = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2", precision="bf16")
    texts = ["Hi", "", "The ferry left without us.", "Rain, again."]
    vectors = low.encode(texts)
    assert vectors.dtype == np.float32
    assert 0 < np.abs(vectors - minilm.encode(texts)).max() < 2e-2
    assert {x.dtype for x in low.state_dict().values()} == {torch.float32}
