"""Thread settings while a model computes: what it gets, and what is left behind."""

from __future__ import annotations

import threading

import pytest
import torch

from mtl.encode import threads


@pytest.fixture(params=["OpenMP's own setting", "a thread of its own"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to set the BLAS alone, the second of which is for builds in which the first is not found."""
    if request.param == "a thread of its own":
        monkeypatch.setattr(threads, "set_openmp", None)


@pytest.mark.parametrize("inside", [1, 2, 3])
def test_a_call_has_its_threads_and_the_caller_keeps_its_own(inside: int) -> None:
    before = torch.get_num_threads()
    assert threads.with_threads(inside, torch.get_num_threads) == inside
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("inside", [1, 2, 3])
def test_threads_side_by_side_have_theirs_each(inside: int) -> None:
    both = threading.Barrier(2)

    def found(_: int) -> int:
        both.wait()
        return torch.get_num_threads()

    before = torch.get_num_threads()
    with threads.side_by_side(2, inside) as pool:
        assert list(pool.map(found, range(2))) == [inside, inside]
    assert torch.get_num_threads() == before


def test_a_call_that_fails_leaves_the_settings_as_they_were() -> None:
    def fail() -> None:
        raise RuntimeError("in the middle")

    before = torch.get_num_threads()
    for inside in (1, before, 3):
        with pytest.raises(RuntimeError, match="in the middle"):
            threads.with_threads(inside, fail)
        assert torch.get_num_threads() == before


def test_the_blas_is_set_for_the_process_and_the_caller_computes_as_before() -> None:
    """A thread that is new takes over the process's number, which is the BLAS's."""

    def in_a_new_thread() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    before = torch.get_num_threads()
    with threads._blas.alone():
        assert (in_a_new_thread(), torch.get_num_threads()) == (1, before)
        with threads._blas.alone():
            pass
        assert in_a_new_thread() == 1
    assert (in_a_new_thread(), torch.get_num_threads()) == (before, before)


def test_openmp_is_found_where_torch_follows_it() -> None:
    found = threads.find_openmp()
    assert found is not None or "OpenMP" not in torch.__config__.parallel_info()
