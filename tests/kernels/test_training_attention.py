"""Training's attention in padded runs: the textbook's values and gradients, and what each text drops of its scores."""

import dataclasses
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import randomized
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mtl.kernels import training_attention
from mtl.kernels.training import Faster
from mtl.kernels.training_attention import PADDING, PADDING_GPU, Attention, Plan, Run, run_of, runs_of
from mtl.model.config import DebertaConfig
from mtl.model.deberta import Deberta
from mtl.model.dropout import Draws, drawing_from, no_dropout
from mtl.model.encoder import attention
from mtl.model.packing import PackedBatch, within_texts

LENGTHS = [(1,), (9, 9, 9), (40, 37, 13, 12, 12, 3, 1), (2, 60, 5, 61), (90, 33)]


def found(
    lengths: tuple[int, ...], mode: bool, p: float = 0.2, dtype: torch.dtype = torch.float32, biased: str = ""
) -> list[Tensor]:
    """The context of two layers, one after another, and the gradients of q, k, v, and what biases are made of.

    A bias is of all "texts" of a length, which two layers share, or of each "text", which the second doubles.
    """
    generator = torch.Generator().manual_seed(sum(lengths))
    q, k, v, g = (torch.randn(sum(lengths), 4, 24, generator=generator).to(dtype) for _ in range(4))
    table = torch.randn(len(lengths), 4, 1, max(lengths), generator=generator).to(dtype)
    parts = [x.requires_grad_() for x in (q, k, v, *([table] if biased else []))]
    batch = PackedBatch.pack([[1] * length for length in lengths])
    biases, before = [], 0
    for group in batch.groups if biased else ():
        n, texts = group.length, group.texts if biased == "text" else 1
        biases.append(table[before : before + texts, ..., :n] * torch.arange(n, dtype=dtype)[:, None] / n)
        before += group.texts
    more = biases if biased == "texts" else [2 * bias for bias in biases]
    draws = Draws([7 + i for i in range(len(lengths))], lengths)
    with drawing_from(draws), Faster() if mode else nullcontext():
        first = within_texts(attention, q, k, v, batch, p, biases)
        context = within_texts(attention, first, k, v, batch, p, more)
    return [first.detach(), context.detach(), *torch.autograd.grad(context, parts, g)]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("biased", ["", "texts", "text"])
def test_as_the_textbook(lengths: tuple[int, ...], p: float, biased: str) -> None:
    exact = found(lengths, False, p, torch.float64, biased)
    for one, other in zip(found(lengths, True, p, biased=biased), exact, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-5)
    for one, other in zip(found(lengths, True, p, torch.bfloat16, biased), exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - other).norm() <= 0.02 * other.norm() + 1e-6


def test_padding_is_bounded() -> None:
    assert runs_of([9, 9, 9]) == [[9, 9, 9]]
    assert runs_of([2, 60, 5, 61]) == [[2], [60], [5], [61]]
    for run in runs_of(range(300, 0, -1)):
        assert all(run[0] ** 2 - length**2 <= PADDING and length <= run[0] <= 2 * length for length in run)
    assert runs_of([32] + [2] * 9) == [[32], [2] * 9]  # or padding would be 256 times what they are
    for lengths in LENGTHS:
        plan = Plan(lengths, 3)
        assert [length for run in runs_of(lengths) for length in run] == [*lengths]
        assert sum(run.texts for run in plan.runs) == len(lengths)


def test_the_textbook_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing to drop or add, a bias of some lengths alone, of other texts than dropout knows, and so on."""
    batch = PackedBatch.pack([[1] * 5, [1] * 3])
    q = torch.randn(8, 2, 16, generator=torch.Generator().manual_seed(0))
    bias = [torch.zeros(1, 2, n, n) for n in (5, 3)]
    draws = Draws([1, 2], batch.lengths)
    with Faster() as mode:
        assert mode.attention(attention, q, q, q, batch, 0.1, ()) is None
        with drawing_from(draws):
            assert mode.attention(attention, q, q, q, batch, 0.0, ()) is None
            assert mode.attention(attention, q, q, q, batch, 1.0, ()) is None
            assert mode.attention(attention, q, q, q, batch, 0.1, [*bias[:1], None]) is None
            assert mode.attention(attention, q.double(), q, q, batch, 0.1, ()) is None
            with no_dropout():
                assert mode.attention(attention, q, q, q, batch, 0.1, ()) is None
            patched = lambda *given: attention(*given)  # noqa: E731
            assert mode.attention(patched, q, q, q, batch, 0.1, ()) is None
            assert mode.attention(attention, q, q, q, batch, 0.1, bias) is not None
        with drawing_from(Draws([1, 2], [3, 5])):
            assert mode.attention(attention, q, q, q, batch, 0.1, ()) is None


def test_what_is_not_finite_stays_in_its_text() -> None:
    q = torch.randn(20, 2, 16, generator=torch.Generator().manual_seed(0))
    q[3] = torch.inf
    batch = PackedBatch.pack([[1] * n for n in (7, 7, 6)])
    with drawing_from(Draws([1, 2, 3], batch.lengths)), Faster():
        context = within_texts(attention, q, q, q, batch, 0.1, ())
    assert context[7:].isfinite().all()
    assert not context[:7].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
def test_on_a_gpu_nothing_is_left_on_the_cpu(dtype: torch.dtype, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values, which know their device, go through it forward and backward; two devices raise."""
    lengths = (9, 9, 7, 3)
    draws = Draws([1, 2, 3, 4], lengths)
    made = {(tuple(own), before): run_of(own, 2, before) for own, before in (((9, 9, 7), 0), ((3,), 25))}
    as_ever = Tensor.to

    def to(x: Tensor, *given: object, **named: object) -> Tensor:  # a copy to a GPU asks for its driver
        moved = torch.device("cuda:0") in given
        return torch.empty(x.shape, dtype=x.dtype, device="cuda") if moved else as_ever(x, *given, **named)

    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: x)
    with FakeTensorMode() as fake:
        draws.keys = torch.empty(4, device="cuda", dtype=torch.int64)

        def known(own: list[int], heads: int, before: int) -> Run:
            run = made[tuple(own), before]
            return dataclasses.replace(
                run, **{name: fake.from_tensor(x) for name, x in vars(run).items() if isinstance(x, Tensor)}
            )

        monkeypatch.setattr(training_attention, "run_of", known)
        q, k, v, g = (torch.empty(28, 2, 16, device="cuda", dtype=dtype) for _ in range(4))
        biases = [torch.empty(1, 2, n, n, device="cuda", dtype=dtype) for n in (9, 7, 3)] if biased else []
        plan = Plan(lengths, 2, q.device)
        assert [run.texts for run in plan.runs] == [3, 1]
        context = SimpleNamespace(needs_input_grad=[True] * 7)  # autograd itself asks for the driver
        context.save_for_backward = lambda *tensors: setattr(context, "saved_tensors", tensors)
        kept, padded = plan.kept(draws, 0.1), plan.padded(biases) if biased else ()
        out = Attention.forward(context, q, k, v, plan, kept, *padded)
        of_q, of_k, of_v, _, _, *of_biases = Attention.backward(context, g)
        assert len(of_biases) == len(padded)
        assert all(x.device.type == "cuda" for x in (out, of_q, of_k, of_v, *of_biases))
        assert {x.dtype for x in (out, of_q, of_k, of_v)} == {dtype}


def test_longer_runs_on_a_gpu() -> None:
    assert runs_of([60, 50, 40, 30, 29, 9], PADDING_GPU) == [[60, 50, 40, 30], [29], [9]]


def test_nothing_is_left_of_a_pass() -> None:
    """Biases that follow from a layer's input hold that layer's graph, which must not hold them."""
    config = DebertaConfig(vocab_size=40, n_layers=3, n_heads=2, dim=16, hidden_dim=20, max_position_embeddings=32)
    encoder = randomized(Deberta(config)).train()
    batch = PackedBatch.pack([[5, 6, 7], [8, 9]])
    with drawing_from(Draws([1, 2], batch.lengths)), Faster() as mode:
        encoder(batch).sum().backward()
        plan = weakref.ref(mode.plan)
        mode.plan = None
    assert plan() is None
