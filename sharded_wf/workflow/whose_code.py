"""Which run's code it is that asks, or the error that says what to write instead."""

from __future__ import annotations

from asyncio import _get_running_loop

from sharded_wf.errors import OutsideWorkflow
from sharded_wf.workflow.async_run import AsyncRun
from sharded_wf.workflow.loop import WorkflowLoop
from sharded_wf.workflow.run import WorkflowRun
from sharded_wf.workflow.thread_run import ThreadRun, thread_run_here


def async_run(what: str) -> AsyncRun:
    """The run whose async code this is. Raises :class:`OutsideWorkflow`."""
    loop = _get_running_loop()
    if type(loop) is WorkflowLoop:
        return loop.run
    if thread_run_here() is not None:
        raise OutsideWorkflow(f"{what}(...) in a def workflow: call {what}.blocking(...)")
    raise OutsideWorkflow(f"{what}() works only in a workflow's own code, not in a step or outside")


def blocking_run(what: str) -> ThreadRun:
    """The run whose ``def`` code this is. Raises :class:`OutsideWorkflow`."""
    run = thread_run_here()
    if run is None:
        raise OutsideWorkflow(f"{what}.blocking() works only in a def workflow; in an async one, await {what}(...)")
    return run


def run_here(what: str) -> WorkflowRun:
    """The workflow whose own code this is. Raises :class:`OutsideWorkflow`, naming ``what`` was called."""
    loop = _get_running_loop()
    run: WorkflowRun | None = loop.run if type(loop) is WorkflowLoop else thread_run_here()
    if run is None:
        raise OutsideWorkflow(f"{what}() works only in a workflow's own code, not in a step or outside")
    return run
