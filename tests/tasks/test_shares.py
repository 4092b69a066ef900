"""A share of the rows: as much of each label, equal texts together, and the same whatever the order."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.tasks.shares import levels, shares_of

ROWS = st.lists(
    st.tuples(st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=1, max_size=2), st.sampled_from("xyz")),
    min_size=1,
    max_size=40,
)


def test_each_label_has_its_share() -> None:
    texts = [[f"text {i}"] for i in range(1000)]
    strata = ["often"] * 700 + ["seldom"] * 290 + ["once"] * 10
    held = shares_of(texts, strata, {"dev": 0.1, "test": 0.2}, seed=0)
    assert Counter(strata[i] for i in held["dev"]) == {"often": 70, "seldom": 29, "once": 1}
    assert Counter(strata[i] for i in held["test"]) == {"often": 140, "seldom": 58, "once": 2}
    assert not {*held["dev"]} & {*held["test"]}
    assert shares_of(texts, strata, {"dev": 0.1}, seed=1)["dev"] != held["dev"]
    assert len(shares_of(texts, [str(i) for i in range(1000)], {"dev": 0.1}, seed=0)["dev"]) == 100


def test_a_label_keeps_its_last_row_where_others_have_more() -> None:
    strata = ["once", "twice", "twice", *["often"] * 7]
    for seed in range(20):
        held = shares_of([[f"text {i}"] for i in range(10)], strata, {"dev": 0.3}, seed)["dev"]
        assert len(held) == 3
        assert 0 not in held
        assert not {1, 2} <= {*held}


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, share=st.floats(0.05, 0.6), seed=st.integers(0, 9), shuffle=st.integers())
def test_equal_texts_stay_together_in_any_order(
    rows: list[tuple[list[str], str]], share: float, seed: int, shuffle: int
) -> None:
    """What is taken shares no text with what is left; nor does it depend on the rows' order."""

    def taken(rows: list[tuple[list[str], str]]) -> list[tuple[list[str], str]]:
        held = shares_of([texts for texts, _ in rows], [label for _, label in rows], {"dev": share}, seed)["dev"]
        assert held == sorted(set(held))
        assert len(held) <= share * len(rows) + 1
        inside = {text for i in held for text in rows[i][0]}
        outside = {text for i in range(len(rows)) if i not in held for text in rows[i][0]}
        assert not inside & outside
        return sorted(rows[i] for i in held)

    other = rows.copy()
    random.Random(shuffle).shuffle(other)
    assert taken(rows) == taken(other)


def test_numbers_are_taken_from_all_heights() -> None:
    numbers = [float(i % 100) for i in range(1000)]
    held = shares_of([[str(i)] for i in range(1000)], levels(numbers), {"dev": 0.1}, seed=0)["dev"]
    assert Counter(int(numbers[i] // 10) for i in held) == {tenth: 10 for tenth in range(10)}
    assert levels([5.0, 5.0, 5.0]) == levels([5.0, 5.0, 5.0])[:1] * 3
