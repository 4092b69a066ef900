"""The schedule is a pure function, and sees every row as often as it says."""

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.training import schedule as schedules
from mtl.training.schedule import Schedule, batches_per_task, kept_apart, permutation

SIZES = {"a": 10, "b": 3}


@given(
    sizes=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 40), min_size=1),
    batch_size=st.integers(1, 9),
    accumulate=st.integers(1, 5),
    seed=st.integers(0, 2**40),
)
def test_proportional_sees_each_row_once_an_epoch(sizes, batch_size, accumulate, seed) -> None:
    schedule = Schedule(sizes, batch_size, accumulate, seed=seed)
    steps = schedule.steps_per_epoch
    for epoch in range(2):
        micros = [m for step in range(epoch * steps, (epoch + 1) * steps) for m in schedule.window(step)]
        for task, size in sizes.items():
            assert sorted(i for m in micros if m.task == task for i in m.rows) == list(range(size))
    for step in range(2 * steps):  # known before the rows are drawn
        told = [(task, schedule.rows(task, nth)) for task, nth in schedule.drawn(step)]
        assert told == [(m.task, len(m.rows)) for m in schedule.window(step)]
    windows = [len(schedule.window(step)) for step in range(steps)]
    assert all(length == accumulate for length in windows[:-1])
    assert 1 <= windows[-1] <= accumulate


@given(seed=st.integers(0, 1000), step=st.integers(0, 50))
def test_a_window_depends_on_seed_and_step_alone(seed: int, step: int) -> None:
    other = Schedule(SIZES, 2, 3, seed=seed)
    for earlier in range(step):
        other.window(earlier)
    assert other.window(step) == Schedule(SIZES, 2, 3, seed=seed).window(step)


@pytest.mark.parametrize("tasks", [2, 20])
def test_an_order_is_made_once(monkeypatch: pytest.MonkeyPatch, tasks: int) -> None:
    """Of each task's passes, and of each epoch's micro-batches, for any number of tasks."""
    made = []
    real = permutation
    monkeypatch.setattr(schedules, "permutation", lambda size, *seeds: made.append(seeds) or real(size, *seeds))
    schedule = Schedule({str(task): 40 for task in range(tasks)}, 4, 2, seed=77)
    for step in range(2 * schedule.steps_per_epoch):
        schedule.window(step)
    assert len(made) == len({*made}) == 2 * (tasks + 1)


def test_epochs_and_seeds_differ() -> None:
    one, two = (Schedule({"a": 50}, 50, seed=seed) for seed in (0, 1))
    assert len({one.window(0)[0].rows, one.window(1)[0].rows, two.window(0)[0].rows}) == 3


def test_ragged_micro_batch_and_short_window() -> None:
    schedule = Schedule({"a": 10, "b": 3}, batch_size=4, accumulate=3)
    micros = [m for step in range(2) for m in schedule.window(step)]
    assert schedule.steps_per_epoch == 2
    assert Counter((m.task, len(m.rows)) for m in micros) == {("a", 4): 2, ("a", 2): 1, ("b", 3): 1}


@pytest.mark.parametrize(
    ("sampling", "temperature", "expected"),
    [
        ("proportional", 1.0, {"a": 90, "b": 10}),
        ("uniform", 1.0, {"a": 50, "b": 50}),
        ("temperature", 2.0, {"a": 75, "b": 25}),
        ("temperature", 1.0, {"a": 90, "b": 10}),
    ],
)
def test_shares(sampling: str, temperature: float, expected: dict[str, int]) -> None:
    assert batches_per_task({"a": 90, "b": 10}, sampling, temperature) == expected


def test_a_tiny_task_is_always_seen() -> None:
    assert batches_per_task({"a": 100000, "b": 1}, "temperature", 1.0)["b"] == 1


def test_uniform_goes_through_small_tasks_several_times() -> None:
    schedule = Schedule({"a": 90, "b": 10}, 1, sampling="uniform")
    assert schedule.effective_epochs(2) == {"a": 2 * 50 / 90, "b": 10.0}
    rows = Counter(m.rows[0] for step in range(100) for m in schedule.window(step) if m.task == "b")
    assert rows == dict.fromkeys(range(10), 5)


@given(rows=st.integers(12, 60), batch_size=st.integers(2, 5), near=st.integers(1, 2), seed=st.integers(0, 1000))
def test_no_window_holds_a_text_twice(rows: int, batch_size: int, near: int, seed: int) -> None:
    """Where each text is in at most two rows, and there is room; windows may begin at any micro-batch."""
    texts = [(row // 2, 1000 + row) for row in range(rows)]
    order = kept_apart(permutation(rows, seed).tolist(), texts, batch_size, near)
    assert sorted(order) == list(range(rows))
    if rows < 4 * batch_size * near:
        return  # too little room for certain
    batches = [order[i : i + batch_size] for i in range(0, rows, batch_size)]
    for i in range(len(batches) - near + 1):
        window = [text for batch in batches[i : i + near] for row in batch for text in texts[row]]
        assert len(set(window)) == len(window)


def duplicates(order: list[int], texts: list[tuple[int, ...]], batch_size: int) -> int:
    batches = [
        [text for row in order[i : i + batch_size] for text in texts[row]] for i in range(0, len(order), batch_size)
    ]
    return sum(len(batch) - len(set(batch)) for batch in batches)


@pytest.mark.parametrize("anchors", [1, 5, 20, 40, 200])
def test_few_distinct_texts(anchors: int) -> None:
    """20,000 rows are in order in a second, not in 32: as few stand twice as must."""
    texts = [(row * 7919 % 10007 % anchors, 10**6 + row) for row in range(20000)]
    order = permutation(20000, 1).tolist()
    started = time.process_time()
    kept = kept_apart(order, texts, 32, 1)
    assert time.process_time() - started < 3  # measured: 0.1 to 0.3
    assert sorted(kept) == list(range(20000))
    least = max(0, 32 - anchors) * 625
    assert duplicates(kept, texts, 32) == least < duplicates(order, texts, 32) + (anchors == 1)


def test_a_text_of_all_rows_is_endured() -> None:
    assert sorted(kept_apart(range(20), [(0,)] * 20, 4, 1)) == list(range(20))


def test_a_schedule_keeps_texts_apart() -> None:
    texts = [(row % 6, 100 + row) for row in range(24)]
    schedule = Schedule({"a": 24}, 4, seed=3, apart={"a": texts})
    for step in range(12):
        (micro,) = schedule.window(step)
        assert len({text for row in micro.rows for text in texts[row]}) == 8
    again = Schedule({"a": 24}, 4, seed=3, apart={"a": texts})
    assert again.window(9) == schedule.window(9)
    assert sorted(i for step in range(6) for i in schedule.window(step)[0].rows) == list(range(24))
