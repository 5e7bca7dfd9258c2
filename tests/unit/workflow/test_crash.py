"""Random programs, killed after every single entry: replay must give the same result and run no recorded step again."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharded_wf.model.history import EMPTY_HISTORY, EntryKind, History
from tests.unit.workflow.memory_host import MemoryHost, run_virtual
from tests.unit.workflow.random_programs import DELAYS, app, program, ran

delays = st.sampled_from(DELAYS)
leaves = st.one_of(
    st.tuples(st.just("step"), delays), st.tuples(st.just("fail"), delays), st.tuples(st.just("sleep"), delays)
)


def _branches(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        *(st.tuples(st.just(kind), several) for kind in ("sequence", "gather", "completed", "group", "first")),
        st.tuples(st.just("timeout"), delays, inner),
    )


trees = st.recursive(leaves, _branches, max_leaves=6)


def run_until(tree: Any, history: History, crash_after: int | None) -> tuple[list[str] | None, History, Counter[str]]:
    """One life of the workflow: its result, or ``None`` if the host died first; what is durable; the steps that ran."""

    async def main() -> tuple[list[str] | None, History]:
        host = MemoryHost(app, crash_after=crash_after)
        try:
            bound = program.bind(tree)
            host.begin(bound, history=history)
            ended = asyncio.create_task(host.outcome())
            died = asyncio.create_task(host.crashed.wait())
            await asyncio.wait([ended, died], return_when=asyncio.FIRST_COMPLETED)
            died.cancel()
            if not ended.done():
                ended.cancel()
                return None, host.stored["w"].history()
            return await host.result(bound), host.stored["w"].history()
        finally:
            host.close()

    ran.clear()
    result, after = run_virtual(main())
    return result, after, Counter(ran)


def recorded_steps(history: History) -> int:
    return sum(entry.kind is EntryKind.STEP for entry in history.entries)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(trees)
def test_replay_of_a_whole_history_gives_the_same_result_and_runs_nothing(tree: Any) -> None:
    result, history, _ = run_until(tree, EMPTY_HISTORY, None)
    again, after, ran_again = run_until(tree, history, None)
    assert again == result
    assert not ran_again
    assert after.entries == history.entries


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(trees)
def test_a_crash_at_every_ordinal_loses_and_repeats_nothing(tree: Any) -> None:
    _, whole, _ = run_until(tree, EMPTY_HISTORY, None)
    for ordinal in range(1, len(whole.entries)):
        _, history, ran_before = run_until(tree, EMPTY_HISTORY, ordinal)
        result, after, ran_after = run_until(tree, history, None)
        assert result is not None
        assert after.entries[: len(history.entries)] == history.entries
        replayed, unchanged, ran_on_replay = run_until(tree, after, None)
        assert replayed == result
        assert unchanged.entries == after.entries
        assert not ran_on_replay
        # Every recorded step ran once in the life that recorded it; only unrecorded ones may have run twice.
        assert sum(ran_after.values()) >= recorded_steps(after) - recorded_steps(history)
        for label, times in (ran_before + ran_after).items():
            assert times <= 2, label


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(trees)
def test_dying_after_each_entry_still_ends(tree: Any) -> None:
    history = EMPTY_HISTORY
    for _ in range(500):
        result, history, _ = run_until(tree, history, 1)
        if result is not None:
            break
    else:
        raise AssertionError("it never ended")
    assert run_until(tree, history, None)[0] == result
