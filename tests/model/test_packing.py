"""Packing, worked by hand."""

import pytest
import torch

from mtl.encode.batching import by_token_budget, in_shares, longest_first
from mtl.export.twin import PaddedBatch
from mtl.model.packing import Group, PackedBatch


def test_pack() -> None:
    batch = PackedBatch.pack([[7, 8, 9], [5], [6]])
    assert batch.ids.tolist() == [7, 8, 9, 5, 6]
    assert batch.positions.tolist() == [0, 1, 2, 0, 0]
    assert batch.lengths == (3, 1, 1)
    assert batch.groups == (Group(1, 3), Group(2, 1))
    assert batch.offsets.tolist() == [0, 3, 4, 5]
    assert batch.offsets.dtype == torch.int32


def test_a_group_is_a_view_of_its_texts() -> None:
    batch = PackedBatch.pack([[7, 8], [5, 6], [4]])
    x = torch.arange(10).view(5, 2)
    view, other = batch.split(x)
    assert view.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert other.tolist() == [[[8, 9]]]
    assert view.data_ptr() == x.data_ptr()


def test_places_pass_over_padding() -> None:
    """Worked by hand, on its own text alone; the padded twin's are the same."""
    rows = [[1, 7, 1, 1, 8], [1, 1], [5, 6], [9]]
    expected = [9, 0, 9, 9, 1, 9, 9, 0, 1, 0]
    batch = PackedBatch.pack(rows)
    assert batch.position_ids(1, 9).tolist() == expected
    assert batch.position_ids(None, 9) is batch.position_ids(3, 9) is batch.positions
    mask = torch.tensor([[1] * len(row) + [0] * (5 - len(row)) for row in rows])
    twin = PaddedBatch(torch.tensor([row + [1] * (5 - len(row)) for row in rows]), mask)
    assert twin.position_ids(1, 9)[mask.flatten() != 0].tolist() == expected
    assert twin.position_ids(None, 9) is twin.positions


def test_from_padded_keeps_positions() -> None:
    batch = PackedBatch.from_padded(
        torch.tensor([[9, 1, 2, 9], [3, 9, 4, 5]]), torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1]])
    )
    assert batch.ids.tolist() == [1, 2, 3, 4, 5]
    assert batch.positions.tolist() == [1, 2, 0, 2, 3]
    assert batch.lengths == (2, 3)


@pytest.mark.parametrize("lengths", [(2, 2), (3, 0), (4, -1)])
def test_lengths_that_do_not_fit(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected their sum, \d, and no empty text"):
        PackedBatch(torch.zeros(3), torch.zeros(3), lengths)


def test_batches_by_token_budget() -> None:
    assert by_token_budget([3, 9, 5, 2, 4], 9) == [[1], [2, 4], [0, 3]]
    assert by_token_budget([20, 1], 9) == [[0], [1]]
    assert by_token_budget([], 9) == []


def test_batches_in_shares() -> None:
    """All rows, longest first, and no batch further than one text from its share."""
    assert in_shares([3, 9, 5, 2, 4], 2) == [[1], [2, 4, 0, 3]]
    assert in_shares([7], 3) == [[0]]
    lengths = [1 + i * 37 % 50 for i in range(200)]
    batches = in_shares(lengths, 6)
    assert [i for batch in batches for i in batch] == longest_first(lengths)
    tokens = [sum(lengths[i] for i in batch) for batch in batches]
    assert max(abs(part - sum(lengths) / 6) for part in tokens) <= max(lengths)
