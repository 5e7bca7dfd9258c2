"""A workflow's code that changes while workflows are open: ``patched``, pinned functions, versions."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from sharded_wf import App, DefinitionError, OutsideWorkflow, by_name, deprecate_patch, patched, wait_until
from sharded_wf.model.history import EMPTY_HISTORY, EntryKind, History
from tests.unit.workflow import evolving_programs as programs
from tests.unit.workflow.memory_host import START_US, MemoryHost, run_virtual

BOTH = pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "def"])
Program = tuple[App, Any]


def live(program: Program, history: History = EMPTY_HISTORY, crash_after: int | None = None) -> tuple[Any, History]:
    """One life of the workflow, in short real time: its result, or None if the host died; and what is durable."""

    async def main() -> tuple[Any, History]:
        app, bound = program
        host = MemoryHost(app, crash_after=crash_after)
        host.clock = _Hurrying(host.clock)
        try:
            host.begin(bound, history=history, started_at=0)
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

    programs.ran.clear()
    return asyncio.run(main())


class _Hurrying:
    """Every look at the clock finds it an hour later, in the next life too, so that no timer waits."""

    hours = itertools.count(1)

    def __init__(self, clock: Any) -> None:
        self._clock = clock

    def now_us(self) -> int:
        return next(self.hours) * 3_600_000_000

    def monotonic(self) -> float:
        return float(self._clock.monotonic())


@BOTH
def test_open_workflows_finish_the_old_way_as_far_as_they_went_it(asynchronous: bool) -> None:
    """Killed after every entry under the old code; the new code goes on, killed again after every further entry."""
    seen = set()
    for died_after in range(4):
        history = EMPTY_HISTORY
        if died_after:
            result, history = live(programs.before(asynchronous), crash_after=died_after)
            assert result is None
        expected = ["old-1" if died_after >= 1 else "new-1", "old-2" if died_after >= 3 else "new-2"]
        seen.add(tuple(expected))
        whole, complete = live(programs.after(asynchronous), history)
        assert whole == expected
        for again_after in range(1, len(complete.entries) - len(history.entries) + 1):
            _, midway = live(programs.after(asynchronous), history, crash_after=again_after)
            assert live(programs.after(asynchronous), midway)[0] == expected
    assert len(seen) == 3


@BOTH
def test_a_mark_is_recorded_once_and_asks_nothing_on_replay(asynchronous: bool) -> None:
    result, history = live(programs.after(asynchronous))
    assert result == ["new-1", "new-2"]
    assert [entry.name for entry in history.entries if entry.kind is EntryKind.PATCH] == ["first", "second"]
    assert live(programs.after(asynchronous), history) == (result, history)
    assert programs.ran == []


@BOTH
def test_the_steps_of_removing_a_patch_understand_each_other(asynchronous: bool) -> None:
    """patched -> deprecate_patch -> gone: neighbours in that row can take each other's workflows up, both ways."""

    def deprecated(name: str) -> bool:
        deprecate_patch(name)
        return True

    def gone(_name: str) -> bool:
        return True

    stages = [patched, deprecated, gone]
    for first, second in [(0, 1), (1, 0), (1, 2), (2, 1)]:
        for died_after in range(1, 6):
            result, history = live(programs.after(asynchronous, stages[first]), crash_after=died_after)
            if result is None:
                assert live(programs.after(asynchronous, stages[second]), history)[0] == ["new-1", "new-2"]


def test_patched_belongs_into_a_workflow_s_code() -> None:
    with pytest.raises(OutsideWorkflow, match=r"patched\(\)"):
        patched("x")


def test_capabilities() -> None:
    app = App("shop", version="2", upgrades=["1", None])

    @app.workflow
    async def order() -> None: ...

    @app.workflow(pinned=True)
    async def audit() -> None: ...

    assert (order.bind().capability, audit.bind().capability) == ("shop@2", "shop@2/audit")
    own = ["shop/$map", "shop/$map_page"]
    assert app.capabilities() == ["shop@2", "shop@1", "shop", "shop@2/audit", "shop/order", "shop/audit", *own]
    assert by_name("shop/audit", version="2", pinned=True).bind().capability == "shop@2/audit"
    with pytest.raises(DefinitionError, match="a list of versions"):
        App("shop", version="2", upgrades="1")
    with pytest.raises(DefinitionError, match="without '/'"):
        App("shop", version="1/2")


def test_pinned_without_a_version_is_like_any_other() -> None:
    app = App("shop")

    @app.workflow(pinned=True)
    async def audit() -> None: ...

    assert audit.bind().capability == "shop"


def test_a_sensor_that_only_looked_so_far_went_the_old_way() -> None:
    """Nothing is recorded of it but its last look."""
    looks: list[bool] = []

    def program(*, changed: bool) -> Program:
        app = App("sensor")

        @app.step
        async def look() -> bool:
            looks.append(changed)
            return changed

        @app.step
        async def other() -> str:
            return "new"

        @app.workflow
        async def waits() -> str:
            if changed and patched("another way"):
                return await other()
            await wait_until(look, every=3600)
            return "old"

        return app, waits.bind()

    async def first_life() -> History:
        app, bound = program(changed=False)
        host = MemoryHost(app)
        host.crash_after_beats = 1
        try:
            host.begin(bound, started_at=START_US)
            await host.crashed.wait()
            return host.stored["w"].history()
        finally:
            host.close()

    async def second_life() -> object:
        app, bound = program(changed=True)
        host = MemoryHost(app)
        try:
            host.begin(bound, history=history, started_at=START_US)
            return await host.result(bound)
        finally:
            host.close()

    history = run_virtual(first_life())
    assert history.entries == ()
    assert run_virtual(second_life()) == "old"
    assert looks == [False, True]
