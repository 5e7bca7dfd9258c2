"""Random programs, killed after every single entry: replay must give the same result and run no recorded step again."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharded_wf import App
from sharded_wf.model.history import EMPTY_HISTORY, EntryKind, History
from tests.unit.workflow.memory_host import MemoryHost, run_virtual

app = App("crash")
ran: Counter[str] = Counter()


@app.step
async def work(label: str, delay: float) -> str:
    ran[label] += 1
    await asyncio.sleep(delay)
    if label.endswith("!"):
        raise ValueError(label)
    return f"<{label}>"


async def interpret(program: Any, path: str, log: list[str]) -> str:
    """Run a program tree; what it does depends on the order in which results arrive, through ``log``."""
    kind, *rest = program
    if kind == "step":
        result = await work(path, rest[0])
    elif kind == "fail":
        try:
            result = await work(path + "!", rest[0])
        except ValueError as error:
            result = f"failed {error}"
    elif kind == "sleep":
        await asyncio.sleep(rest[0])
        result = "slept"
    elif kind == "sequence":
        result = "".join([await interpret(part, f"{path}.{n}", log) for n, part in enumerate(rest[0])])
    elif kind == "gather":
        parts = [interpret(part, f"{path}.{n}", log) for n, part in enumerate(rest[0])]
        result = "|".join(await asyncio.gather(*parts))
    elif kind == "timeout":
        try:
            result = await asyncio.wait_for(interpret(rest[1], f"{path}.t", log), rest[0])
        except TimeoutError:
            result = "late"
    elif kind == "group":
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(interpret(p, f"{path}.{n}", log)) for n, p in enumerate(rest[0])]
        result = "&".join(task.result() for task in tasks)
    else:  # the first of several; the others are cancelled
        tasks = [asyncio.create_task(interpret(p, f"{path}.{n}", log)) for n, p in enumerate(rest[0])]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        result = "first " + ",".join(sorted(task.result() for task in done))
    log.append(path)
    # What is asked for next depends on how many things happened before: replay must give back the same order.
    if len(log) % 3 == 0:
        result += await work(f"extra after {'/'.join(log[-2:])}", 0.5)
    return result


@app.workflow
async def program(tree: Any) -> list[str]:
    log: list[str] = []
    return [await interpret(tree, "p", log), *log]


delays = st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0])
leaves = st.one_of(
    st.tuples(st.just("step"), delays), st.tuples(st.just("fail"), delays), st.tuples(st.just("sleep"), delays)
)


def _branches(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        *(st.tuples(st.just(kind), several) for kind in ("sequence", "gather", "group", "first")),
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
