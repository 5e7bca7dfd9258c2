"""``continue_as_new``: a workflow that lives long begins anew. What is taken along: see ``continuation``."""

from __future__ import annotations

from typing import Any, NoReturn

from sharded_wf.errors import DefinitionError
from sharded_wf.workflow.bound import Bound, check_bound
from sharded_wf.workflow.continuation import ContinueAsNew
from sharded_wf.workflow.whose_code import run_here


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
