"""``continue_as_new``: a workflow that lives long begins anew. What is taken along: see ``continuation``."""

from __future__ import annotations

from asyncio import _get_running_loop
from typing import TYPE_CHECKING, Any, NoReturn

from sharded_wf.errors import DefinitionError, OutsideWorkflow
from sharded_wf.workflow.bound import Bound, check_bound
from sharded_wf.workflow.continuation import ContinueAsNew
from sharded_wf.workflow.loop import WorkflowLoop
from sharded_wf.workflow.thread_run import thread_run_here

if TYPE_CHECKING:
    from sharded_wf.workflow.run import WorkflowRun


def continue_as_new(bound: Bound[Any]) -> NoReturn:
    """End this run of the workflow and begin the next: the same ID, new arguments, an empty history.

    ``bound``: the same workflow with the arguments of the next run, made by ``function.bind(...)``; its queue and
    its version are where the next run waits to be taken up. It never returns; ``finally`` blocks run. Works in
    ``async def`` and ``def`` workflows.

    Messages that were not received yet wait for the next run, children that run go on (the next run does not wait for
    them), timers and steps under way are given up. Whoever waits for the result waits on: it is what the last run
    returns.

    Raises :class:`OutsideWorkflow` in a step or outside a workflow, :class:`DefinitionError` if ``bound`` is another
    workflow.
    """
    run = run_here("continue_as_new")
    check_bound(bound)
    _check_same(run.definition.name, bound)
    raise ContinueAsNew(bound)


def _check_same(name: str, bound: Bound[Any]) -> None:
    if bound.name != name:
        raise DefinitionError(
            f"{name!r} can't continue as {bound.name!r}: start that one, and return; "
            "continue_as_new() takes the workflow's own function"
        )


def run_here(what: str) -> WorkflowRun:
    """The workflow whose own code this is. Raises :class:`OutsideWorkflow`, naming ``what`` was called."""
    loop = _get_running_loop()
    run: WorkflowRun | None = loop.run if type(loop) is WorkflowLoop else thread_run_here()
    if run is None:
        raise OutsideWorkflow(f"{what}() works only in a workflow's own code, not in a step or outside")
    return run
