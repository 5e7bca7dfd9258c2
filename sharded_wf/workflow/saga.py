"""``saga()``: work in several steps that is undone, in reverse, if it can't be brought to its end.

Everything here is made of awaits that are recorded, so it survives crashes like any other workflow code. A step that is
under way when the workflow is cancelled is waited for: only then is it known whether it has to be undone. A run that is
only dropped from memory (parked, drained) undoes nothing.
"""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from sharded_wf.errors import CompensationFailed, NonDeterminismError
from sharded_wf.workflow.blame import mark_undone
from sharded_wf.workflow.continuation import continuation_asked_by
from sharded_wf.workflow.loop import WorkflowLoop
from sharded_wf.workflow.run import WorkflowRun
from sharded_wf.workflow.stop import RunDropped
from sharded_wf.workflow.thread_run import ThreadRun, thread_run_here

T = TypeVar("T")

_NO_FAILURE = (GeneratorExit, RunDropped, KeyboardInterrupt, NonDeterminismError)
"""What may leave the scope without meaning that the work has failed."""


def _has_failed(error: BaseException) -> bool:
    """Whether the scope is left because the work has failed. ``continue_as_new`` leaves it as ``return`` does."""
    return not isinstance(error, _NO_FAILURE) and continuation_asked_by(error) is None


class Saga:
    """The scope that ``async with saga() as s`` opens. Several tasks may use it at once."""

    __slots__ = ("_from_step", "_run", "_running", "_undid", "_undos")

    def __init__(self) -> None:
        loop = _get_running_loop()
        self._run: WorkflowRun | None = loop.run if type(loop) is WorkflowLoop else None
        self._undos: list[Callable[[], Awaitable[object]]] = []
        self._undid = False
        self._running: dict[asyncio.Task[Any], None] = {}

    async def step(self, work: Awaitable[T], undo: Callable[[T], Awaitable[object]]) -> T:
        """Await ``work`` (a step, a child), and remember how to undo it: ``undo(result)``.

        ``undo`` is called only if ``work`` succeeded and the scope fails later. If the workflow is cancelled while
        ``work`` is under way, ``work`` comes to its end first. Raises what ``work`` raises.
        """
        task = asyncio.ensure_future(self._remembered(work, undo))
        self._running[task] = None
        try:
            return await _to_its_end(task)
        finally:
            self._running.pop(task, None)

    async def _remembered(self, work: Awaitable[T], undo: Callable[[T], Awaitable[object]]) -> T:
        result = await work
        self._undos.append(lambda: undo(result))
        return result

    def add_undo(self, undo: Callable[[], Awaitable[object]]) -> None:
        """If the scope fails, await ``undo()`` as well, whatever becomes of what follows: for work that may have had an
        effect although it failed. ``undo`` must then bear that there is nothing to undo."""
        self._undos.append(undo)

    async def compensate(self) -> None:
        """Undo now what was done so far, the last first; then the scope goes on, with nothing to undo.

        Each is tried, whatever becomes of the others. Raises :class:`CompensationFailed`.
        """
        if await self._undo_all():
            raise asyncio.CancelledError("cancelled while it compensated")

    async def _undo_all(self) -> bool:
        """Whether somebody wanted to cancel it meanwhile."""
        failed: list[BaseException] = []
        cancelled = False
        while self._undos:
            undo = self._undos.pop()
            self._undid = True
            task = asyncio.ensure_future(_awaited(undo))
            cancelled = await _until_done(task) or cancelled
            try:
                task.result()
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the others are made all the same
                failed.append(error)
        _raise_failed(failed)
        return cancelled

    async def __aenter__(self) -> Self:
        self._from_step = 1 if self._run is None else self._run.saga_opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is not None and _has_failed(error):
                for task in list(self._running):
                    await _until_done(task)
                if self._undos and self._run is not None:
                    self._run.saga_undoes(error, self._from_step)
                await self._undo_all()
                if self._undid:
                    mark_undone(error, self._from_step)
        finally:
            if self._run is not None:
                self._run.saga_closed()


async def _awaited(undo: Callable[[], Awaitable[object]]) -> object:
    return await undo()


async def _to_its_end(task: asyncio.Task[T]) -> T:
    """The result of a task that goes on to its end even if its awaiting is cancelled; cancelled then."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _until_done(task)
        raise


async def _until_done(task: asyncio.Task[Any]) -> bool:
    """Wait for a task, whoever wants to cancel that, and how often; whether somebody did."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    return cancelled


class BlockingSaga:
    """The scope that ``with saga.blocking() as s`` opens in a ``def`` workflow."""

    __slots__ = ("_from_step", "_run", "_undid", "_undos")

    def __init__(self, run: ThreadRun | None) -> None:
        self._run = run
        self._undos: list[Callable[[], object]] = []
        self._undid = False

    def step(self, work: Callable[[], T], undo: Callable[[T], object]) -> T:
        """As ``Saga.step``, with a function to call: ``s.step(lambda: charge.blocking(...), undo=refund.blocking)``."""
        result = self._shielded(work)
        self._undos.append(lambda: undo(result))
        if self._run is not None:
            self._run.raise_if_cancelled()
        return result

    def add_undo(self, undo: Callable[[], object]) -> None:
        """As ``Saga.add_undo``, with a function to call."""
        self._undos.append(undo)

    def compensate(self) -> None:
        """As ``Saga.compensate``."""
        failed: list[BaseException] = []
        while self._undos:
            undo = self._undos.pop()
            self._undid = True
            try:
                self._shielded(undo)
            except NonDeterminismError:
                raise
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the others are made all the same
                failed.append(error)
        _raise_failed(failed)

    def _shielded(self, call: Callable[[], T]) -> T:
        run = self._run
        if run is None:
            return call()
        run.shields += 1
        try:
            return call()
        finally:
            run.shields -= 1

    def __enter__(self) -> Self:
        self._from_step = 1 if self._run is None else self._run.saga_opened()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is not None and _has_failed(error):
                if self._undos and self._run is not None:
                    self._run.saga_undoes(error, self._from_step)
                self.compensate()
                if self._undid:
                    mark_undone(error, self._from_step)
        finally:
            if self._run is not None:
                self._run.saga_closed()


def _raise_failed(failed: list[BaseException]) -> None:
    if failed:
        told = "; ".join(f"{type(error).__name__}: {error}" for error in failed)
        cause = failed[0] if len(failed) == 1 else BaseExceptionGroup("compensations that failed", failed)
        raise CompensationFailed(f"{len(failed)} of the compensations failed: {told}") from cause


class SagaMaker:
    """``async with saga() as s``; in a ``def`` workflow, ``with saga.blocking() as s``."""

    __slots__ = ()

    def __call__(self) -> Saga:
        """A scope: if an exception leaves it, cancellation included, what was done in it is undone, the last first.

        The exception then goes on. If a compensation fails for good, the others are made all the same, and
        :class:`CompensationFailed` is raised.
        """
        return Saga()

    def blocking(self) -> BlockingSaga:
        """The same for ``def`` workflows."""
        return BlockingSaga(thread_run_here())


saga = SagaMaker()
