"""``map_workflow``: what users call. How a map runs is in ``mapping``."""

from __future__ import annotations

from asyncio import _get_running_loop
from collections.abc import Coroutine, Sequence
from typing import Any

import mmh3

from sharded_wf.errors import DefinitionError, LimitExceeded, OutsideWorkflow
from sharded_wf.limits import (
    MAP_CONCURRENCY_DEFAULT,
    MAP_CONCURRENCY_MAX,
    MAP_LIST_PAGE_ITEMS,
    MAP_PAGES_AT_ONCE,
)
from sharded_wf.model.workflow import Start
from sharded_wf.workflow.async_run import AsyncRun
from sharded_wf.workflow.bound import Bound
from sharded_wf.workflow.children import next_child_id
from sharded_wf.workflow.definitions import StepDefinition, WorkflowDefinition
from sharded_wf.workflow.loop import WorkflowLoop
from sharded_wf.workflow.mapping import MAP_NAME, MapItem, MapResult, MapSpec, own_child
from sharded_wf.workflow.thread_run import thread_run_here

Items = Sequence[Any] | StepDefinition[Any, Any] | MapResult
"""A list; or a step that is called with ``None`` and then with ``next`` of the page before, and returns a ``MapPage``;
or the result of an earlier map, whose failed and skipped items are run again."""

_MAP_SEED = 8


class MapWorkflow:
    """``result = await map_workflow(fn, items)``; in a ``def`` workflow, ``map_workflow.blocking(...)``."""

    __slots__ = ()

    def __call__(
        self,
        workflow: WorkflowDefinition[Any, Any],
        items: Items,
        *,
        concurrency: int = MAP_CONCURRENCY_DEFAULT,
        tolerated_failures: int | None = 0,
    ) -> Coroutine[Any, Any, MapResult]:
        """Run ``workflow`` once for each item, as a child, and wait for all of them.

        ``workflow``: called with the item as its only argument. ``items``: a list; a step of the same app, which is
        called with ``None``, then with ``next`` of the page before, and returns a ``MapPage`` of up to 1,000 items; or
        a ``MapResult``, to run again what failed in it or was not begun. ``concurrency``: how many run at once, at
        most. ``tolerated_failures``: so many items may fail; with one more nothing new is begun, what runs comes to
        its end, and ``MapFailed`` is raised. ``None``: any number.

        Raises :class:`MapFailed`; what the step raises; :class:`LimitExceeded`; :class:`OutsideWorkflow` anywhere but
        in an async workflow's code.
        """
        loop = _get_running_loop()
        if type(loop) is not WorkflowLoop:
            form = "map_workflow.blocking" if thread_run_here() is not None else "client.start(map_workflow.bind"
            raise OutsideWorkflow(f"map_workflow() works only in an async workflow's own code; here, use {form}(...)")
        bound = self.bind(workflow, items, concurrency=concurrency, tolerated_failures=tolerated_failures)
        return _awaited(loop.run, bound)

    def blocking(
        self,
        workflow: WorkflowDefinition[Any, Any],
        items: Items,
        *,
        concurrency: int = MAP_CONCURRENCY_DEFAULT,
        tolerated_failures: int | None = 0,
    ) -> MapResult:
        """The same for ``def`` workflows."""
        run = thread_run_here()
        if run is None:
            raise OutsideWorkflow("map_workflow.blocking() works only in a def workflow")
        bound = self.bind(workflow, items, concurrency=concurrency, tolerated_failures=tolerated_failures)
        start = Start(
            next_child_id(run, "/map"), bound.name, bound.capability, bound.queue, 0, bound.input, None, run.id
        )
        result: MapResult = run.call_child(start, mmh3.hash64(bound.input, _MAP_SEED)[0], bound.result)
        return result.check()

    def bind(
        self,
        workflow: WorkflowDefinition[Any, Any],
        items: Items,
        *,
        concurrency: int = MAP_CONCURRENCY_DEFAULT,
        tolerated_failures: int | None = 0,
    ) -> Bound[MapResult]:
        """The map with its arguments, for ``client.start`` and ``start_child``. Its result is a ``MapResult`` even if
        too many items failed: ask ``result.check()``."""
        if not 1 <= concurrency <= MAP_CONCURRENCY_MAX:
            raise LimitExceeded(f"concurrency={concurrency}: from 1 to {MAP_CONCURRENCY_MAX}")
        if tolerated_failures is not None and tolerated_failures < 0:
            raise LimitExceeded(f"tolerated_failures={tolerated_failures}: 0 or more, or None for any number")
        app = workflow.app
        spec = MapSpec(workflow.name, concurrency, tolerated_failures)
        if isinstance(items, StepDefinition):
            if app.steps.get(items.name) is not items:
                raise DefinitionError(f"step {items.name!r}, which gives the items, belongs to another app")
            spec = MapSpec(workflow.name, concurrency, tolerated_failures, more=True, source=items.name)
        elif isinstance(items, MapResult):
            again = [MapItem(failure.number, failure.item) for failure in items.failures]
            again = sorted([*again, *items.skipped], key=lambda item: item.number)
            spec = MapSpec(
                workflow.name, concurrency, tolerated_failures, again, items.more, items.source, items.next,
                items.read, _page_items(len(again)),
            )  # fmt: skip
        else:
            listed = [MapItem(number, item) for number, item in enumerate(items)]
            spec = MapSpec(
                workflow.name, concurrency, tolerated_failures, listed, read=len(listed),
                page_items=_page_items(len(listed)),
            )  # fmt: skip
        return app.own_workflows[f"{app.name}/{MAP_NAME}"].bind(spec)


def _page_items(count: int) -> int:
    """How many items of a list make a page: few enough that all pages that may run at once have some."""
    return max(1, min(MAP_LIST_PAGE_ITEMS, -(-count // MAP_PAGES_AT_ONCE)))


async def _awaited(run: AsyncRun, bound: Bound[MapResult]) -> MapResult:
    result: MapResult = await own_child(run, next_child_id(run, "/map"), bound)
    return result.check()


map_workflow = MapWorkflow()
