"""AdamW on the rows that were met: to the bit what it does with the gradient of all rows."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.training.rows import Rows


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 40),
    dim=st.sampled_from([16, 48]),
    decay=st.sampled_from([0.0, 0.01, 0.3]),
    resumed=st.integers(0, 8),
)
def test_the_same_bits_as_with_all_rows(seed: int, rows: int, dim: int, decay: float, resumed: int) -> None:
    """With other rows in each step, some of them again and some never; and gone on from its state at any step."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(rows, dim, generator=generator)
    dense, table = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimiser = torch.optim.AdamW([dense], lr=0.1, weight_decay=decay, fused=True)
    (group,) = optimiser.param_groups
    found = Rows(table)
    met: set[int] = set()
    for step in range(8):
        group["lr"] = 0.1 / (step + 1)
        some = torch.randperm(rows, generator=generator)[: max(1, rows // 4)].sort().values
        gradient = torch.randn(len(some), dim, generator=generator)
        dense.grad = torch.zeros_like(start).index_copy_(0, some, gradient)
        optimiser.step()
        if step == resumed and step:
            state = {key: x.clone() for key, x in found.state().items()}
            found = Rows(table)
            found.restore(state)
        found.step(some, gradient, group)
        met |= set(some.tolist())
        assert torch.equal(table, dense), step
        state, expected = found.state(), optimiser.state[dense]
        assert set(state["rows"].tolist()) == met
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[moment], expected[moment][state["rows"]])
            assert len(state[moment]) == len(met)


@pytest.mark.parametrize("rows", [1000, 4099])
def test_of_a_large_table_on_several_threads(rows: int) -> None:
    """Threads divide all values of a tensor, wherever its rows end."""
    torch.manual_seed(0)
    dense = torch.nn.Parameter(torch.randn(rows, 80))
    table = torch.nn.Parameter(dense.detach().clone())
    optimiser = torch.optim.AdamW([dense], lr=1e-3, weight_decay=0.01, fused=True)
    found, before = Rows(table), torch.get_num_threads()
    try:
        for step in range(4):
            torch.set_num_threads(1 + step % 3)
            some = torch.randperm(rows)[:700].sort().values
            gradient = torch.randn(700, 80)
            dense.grad = torch.zeros_like(dense).index_copy_(0, some, gradient)
            optimiser.step()
            found.step(some, gradient, optimiser.param_groups[0])
            assert torch.equal(table, dense)
    finally:
        torch.set_num_threads(before)


def test_moments_of_all_rows_are_taken_as_such() -> None:
    """As checkpoints had them before there were rows."""
    table = torch.nn.Parameter(torch.randn(5, 3))
    found = Rows(table)
    assert found.state() == {}
    found.restore({"step": torch.tensor(2.0), "exp_avg": torch.ones(5, 3), "exp_avg_sq": torch.ones(5, 3)})
    assert found.state()["rows"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_that_a_large_vocabulary_takes() -> None:
    """XLM-RoBERTa-base's shape, from its start and gone on: 1,480 to 1,580 MiB beyond weights and moments.

    How far the two threads are apart when one of them is kept waiting decides how much of it there is; a gradient of
    the whole table would take 730 MiB more, its moments 1,460.
    """
    from benchmarks.vocabulary import measured

    for found in measured(rows=64):
        assert found["beyond"] < 2**11, found
        assert found["rows"] < 2000  # of 250,002
        assert found["moments"] < found["weights"]
