"""Work in turns: in order, one at a time, and none left behind when one fails."""

from __future__ import annotations

import threading

import pytest

from bnbench.benchmarks.turns import take_turns


def _counts(name, times, seen):
    def work(pass_on):
        for number in range(times):
            seen.append((name, number))
            pass_on()
        return times

    return work


def test_each_goes_on_where_it_stopped_and_what_has_ended_is_passed_over():
    seen = []
    work = {"a": _counts("a", 1, seen), "b": _counts("b", 3, seen), "c": _counts("c", 2, seen)}
    assert take_turns(work, here="b") == {"a": 1, "b": 3, "c": 2}
    assert seen == [("a", 0), ("b", 0), ("c", 0), ("b", 1), ("c", 1), ("b", 2)]


def test_one_stays_in_the_thread_that_asks():
    threads = take_turns({name: lambda pass_on: threading.current_thread() for name in ("a", "b")}, here="b")
    assert threads["b"] is threading.current_thread() and threads["a"] is not threads["b"]


@pytest.mark.parametrize("fails", ["a", "b", "c"])
def test_what_fails_is_raised_and_ends_the_others(fails):
    ended, before = [], threading.active_count()

    def work(name):
        def run(pass_on):
            try:
                pass_on()
                if name == fails:
                    raise LookupError(name)
                while True:
                    pass_on()
            finally:
                ended.append(name)

        return run

    with pytest.raises(LookupError, match=fails):
        take_turns({name: work(name) for name in ("a", "b", "c")}, here="b")
    assert sorted(ended) == ["a", "b", "c"] and threading.active_count() == before


def test_what_never_had_its_turn_does_not_begin():
    begun = []

    def fail(pass_on):
        raise LookupError

    with pytest.raises(LookupError):
        take_turns({"a": fail, "b": lambda pass_on: begun.append("b")}, here="b")
    assert begun == []
