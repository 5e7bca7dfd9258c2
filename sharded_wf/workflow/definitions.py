"""Steps and workflows as the decorators make them: callables that keep their function's own meaning outside a
workflow."""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast
from uuid import uuid4

import mmh3

from sharded_wf.clock import SECOND_US, Microseconds, seconds_of
from sharded_wf.errors import DefinitionError
from sharded_wf.limits import TIMER_MAX_SECONDS
from sharded_wf.model.history import EntryKind, History
from sharded_wf.model.workflow import Start
from sharded_wf.serialization.arguments import ArgumentsCodec
from sharded_wf.serialization.values import ValueCodec
from sharded_wf.workflow.async_run import AsyncRun
from sharded_wf.workflow.bound import Bound
from sharded_wf.workflow.children import BlockingChildHandle, ChildHandle, child_deadline, next_child_id, start_child
from sharded_wf.workflow.context import Context, get_scope, scope
from sharded_wf.workflow.durability import not_durable
from sharded_wf.workflow.guarded import GuardedStepCommand
from sharded_wf.workflow.host import Host, Run
from sharded_wf.workflow.loop import WorkflowLoop
from sharded_wf.workflow.retry import ONCE, Retry
from sharded_wf.workflow.signatures import Signature
from sharded_wf.workflow.steps import StepCommand
from sharded_wf.workflow.stop import RunDropped
from sharded_wf.workflow.thread_run import ThreadRun, thread_run_here

if TYPE_CHECKING:
    from sharded_wf.workflow.app import App

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class _on_first_use(Generic[T]):  # noqa: N801 - a decorator, as cached_property is
    """Computes an attribute once, when it is first asked for, and keeps it as ``known_...``: a plain attribute, which
    those ask for who ask at every step. (``cached_property`` locks on Python 3.11, and whatever touches an object's
    ``__dict__``, or a ``__getattr__``, slows every attribute of the object down.)"""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self._name = f"known_{compute.__name__}"
        self.__doc__ = compute.__doc__

    def __get__(self, owner: Any, kind: type | None = None) -> T:
        value: T | None = getattr(owner, self._name)
        if value is None:
            value = self._compute(owner)
            setattr(owner, self._name, value)
        return value


class Definition(Generic[P, R]):
    """What steps and workflows share: a function, the name it is known by, and how its values are stored."""

    is_async: bool

    def __init__(self, app: App, function: Callable[..., Any], name: str, namespace: dict[str, Any] | None) -> None:
        self.app = app
        self.function = function
        self.name = name
        self.seed = mmh3.hash(name, signed=False)
        self.known_arguments: ArgumentsCodec | None = None
        self.known_result: ValueCodec[R] | None = None
        self._signature = Signature(function, name, namespace)
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def __get__(self, owner: object, kind: type | None = None) -> Any:
        if owner is None:
            return self
        raise DefinitionError(f"{self.name} is no method: {type(owner).__qualname__} objects can't be stored")

    def check(self) -> None:
        """Resolve the annotations. Raises :class:`DefinitionError` if one names nothing, or JSON can't hold it."""
        _ = self.arguments, self.result

    _TYPED_ARGUMENTS = True

    @_on_first_use
    def arguments(self) -> ArgumentsCodec:
        """How the arguments are stored."""
        hints = self._signature.hints if self._TYPED_ARGUMENTS else {}
        return ArgumentsCodec(self.function, hints, self.name, typed=self._TYPED_ARGUMENTS)

    @_on_first_use
    def result(self) -> ValueCodec[R]:
        """How the result is stored."""
        return ValueCodec(self._signature.result, f"the result of {self.name}")


class StepDefinition(Definition[P, R]):
    """A step: what is recorded, so that it need not be done again."""

    _TYPED_ARGUMENTS = False

    def __init__(
        self,
        app: App,
        function: Callable[..., Any],
        name: str,
        namespace: dict[str, Any] | None,
        retry: Retry | None,
        timeout: timedelta | float | None,
        total_timeout: timedelta | float | None = None,
        heartbeat: timedelta | float | None = None,
    ) -> None:
        super().__init__(app, function, name, namespace)
        if not isinstance(cast("object", retry), Retry | None):
            raise DefinitionError(f"step {name!r}: retry={retry!r}: write retry=Retry(attempts=...)")
        self.retry = ONCE if retry is None else retry
        self.once = self.retry.attempts == 1
        """Whether a call makes one attempt and no other, so that nothing need be kept for the next."""
        self.timeout_seconds = _limit(f"step {name!r}: timeout", timeout)
        self.total_seconds = _limit(f"step {name!r}: total_timeout", total_timeout)
        self.heartbeat_seconds = _limit(f"step {name!r}: heartbeat", heartbeat)
        guarded = total_timeout is not None or heartbeat is not None
        self.plain = self.is_async and self.once and not guarded
        """Whether a call is nothing but one attempt of a coroutine."""
        self.command: type[StepCommand] = GuardedStepCommand if guarded else StepCommand
        """What a call of it is to a run."""


def _limit(what: str, duration: timedelta | float | None) -> float | None:
    if duration is None:
        return None
    try:
        seconds = seconds_of(duration)
    except TypeError:
        seconds = 0.0
    if not seconds > 0:
        raise DefinitionError(f"{what}={duration!r}: a timedelta or seconds, more than 0, or None")
    return seconds


class _Alone:
    """A step that was called outside any workflow."""

    __slots__ = ("_key", "_step")

    def __init__(self, step: str) -> None:
        self._step = step
        self._key = uuid4().hex

    def context(self) -> Context:
        return Context("", "", 1, None, self._step, self._key)


class AsyncStep(StepDefinition[P, R]):
    """An ``async def`` step. Awaited in a workflow it is recorded; anywhere else it is just its function."""

    is_async = True

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """The step as a coroutine; nothing happens before it is awaited."""
        running = get_scope(None)
        if type(running) is AsyncRun:
            return self._recorded(running, args, kwargs)
        loop = _get_running_loop()
        if type(loop) is WorkflowLoop:  # code that runs in a fresh context of its own making
            return self._recorded(loop.run, args, kwargs)
        if running is None:
            return self._alone(args, kwargs)
        if type(running) is ThreadRun:
            raise not_durable(f"awaiting in a def workflow: step {self.name!r}", f"call {self.__name__}.blocking(...)")
        function: Callable[..., Coroutine[Any, Any, R]] = self.function
        return function(*args, **kwargs)

    def blocking(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The form for ``def`` workflows: run the step on the event loop and wait for its result.

        Raises what the step raises; outside a ``def`` workflow, :class:`NotDurableError`.
        """
        run = thread_run_here()
        if run is None:
            raise not_durable(f"{self.__name__}.blocking(...) outside a def workflow", f"await {self.__name__}(...)")
        result: R = run.issue_step(self, args, kwargs)
        return result

    async def _recorded(self, run: AsyncRun, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        command = run.issue_step(self, args, kwargs)
        try:
            return await command.future
        except asyncio.CancelledError:
            command.abandon()
            raise

    async def _alone(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        token = scope.set(_Alone(self.name))
        try:
            return await self.function(*args, **kwargs)
        finally:
            scope.reset(token)


class SyncStep(StepDefinition[P, R]):
    """A ``def`` step. Called in a ``def`` workflow it is recorded; an async workflow awaits :meth:`in_thread`."""

    is_async = False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the step. Raises :class:`NotDurableError` in an async workflow, which it would block."""
        if type(_get_running_loop()) is WorkflowLoop:
            raise not_durable(f"calling def step {self.name!r} directly", f"write await {self.__name__}.in_thread(...)")
        running = scope.get(None)
        result: R
        if type(running) is ThreadRun:
            result = running.issue_step(self, args, kwargs)
            return result
        if running is not None:
            result = self.function(*args, **kwargs)
            return result
        token = scope.set(_Alone(self.name))
        try:
            result = self.function(*args, **kwargs)
            return result
        finally:
            scope.reset(token)

    async def in_thread(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The form for async code: run the step in a thread; in a workflow it is recorded.

        A timeout can't stop a thread: the attempt has failed, and what it returns later is ignored.
        """
        loop = _get_running_loop()
        if type(loop) is not WorkflowLoop:
            return await asyncio.to_thread(self, *args, **kwargs)
        command = loop.run.issue_step(self, args, kwargs)
        try:
            result: R = await command.future
            return result
        except asyncio.CancelledError:
            command.abandon()
            raise


class WorkflowDefinition(Definition[P, R]):
    """A workflow: code that can be replayed from its history."""

    run_class: type[AsyncRun] | type[ThreadRun]

    def __init__(
        self,
        app: App,
        function: Callable[..., Any],
        name: str,
        namespace: dict[str, Any] | None,
        queue: str,
        timeout: timedelta | float | None = None,
        run_timeout: timedelta | float | None = None,
        *,
        pinned: bool = False,
    ) -> None:
        super().__init__(app, function, name, namespace)
        self.short_name = name.partition("/")[2]
        self.queue = queue
        # A pinned function has a capability of its own at its version, which no other version's executors serve.
        self.capability = f"{app.capability}/{self.short_name}" if pinned and app.version else app.capability
        self.timeout_seconds = _limit(f"workflow {name!r}: timeout", timeout)
        self.run_seconds = _limit(f"workflow {name!r}: run_timeout", run_timeout)

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Bound[R]:
        """The workflow with its arguments, to be given to ``client.start``.

        Raises ``TypeError`` if they don't fit the signature, :class:`UnstorableValue` or :class:`StoredValueMismatch`
        if one can't be stored as it is.
        """
        data = self.arguments.encode(args, kwargs)
        return Bound(self.name, self.capability, self.queue, data, self.result, self.timeout_seconds)

    def deadline(
        self, history: History, started_at: Microseconds, deadline: Microseconds | None
    ) -> Microseconds | None:
        """When the time of a workflow is over that first ran at ``started_at``: as its start says (``deadline``), or as
        this definition does. After a resume it has its whole time again."""
        if self.run_seconds is None:
            return deadline
        resumes = (entry.completed_at for entry in reversed(history.entries) if entry.kind is EntryKind.RESUME)
        own = next(resumes, started_at) + round(min(self.run_seconds, TIMER_MAX_SECONDS) * SECOND_US)
        return own if deadline is None else min(deadline, own)

    def start(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, ChildHandle[R]]:
        """In an async workflow: start it as a child, and go on beside it. With options: ``start_child(fn.bind(...))``.

        ``handle = await fn.start(...)``, later ``await handle.result()``. Raises as ``start_child``.
        """
        return start_child(self.bind(*args, **kwargs))

    def start_blocking(self, *args: P.args, **kwargs: P.kwargs) -> BlockingChildHandle[R]:
        """The same for ``def`` workflows."""
        return start_child.blocking(self.bind(*args, **kwargs))

    def new_run(
        self,
        host: Host,
        workflow_id: str,
        input: bytes,
        history: History,
        started_at: Microseconds,
        attempt: int,
    ) -> Run:
        """A run of this workflow on ``host``, not yet started. ``attempt`` counts how often it has been taken up, from
        1."""
        return self.run_class(self, host, workflow_id, input, history, started_at, attempt)

    def _child(self, run: AsyncRun | ThreadRun, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Start, int]:
        data = self.arguments.encode(args, kwargs)
        id_, deadline = next_child_id(run, self.name), child_deadline(run, self.timeout_seconds)
        start = Start(id_, self.name, self.capability, self.queue, 0, data, None, run.id, deadline=deadline)
        return start, mmh3.hash64(data, self.seed)[0]

    async def _as_child(self, run: AsyncRun, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if run.stopped:
            raise RunDropped
        start, base = self._child(run, args, kwargs)
        command = run.issue_child(start, base, self.result)
        try:
            return await command.future
        except asyncio.CancelledError:
            run.give_up_child(command)
            raise


class AsyncWorkflow(WorkflowDefinition[P, R]):
    """An ``async def`` workflow. Awaited in another workflow it is a child; anywhere else it is just its function."""

    is_async = True
    run_class = AsyncRun

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """The workflow as a coroutine; nothing happens before it is awaited."""
        loop = _get_running_loop()
        if type(loop) is WorkflowLoop:
            return self._as_child(loop.run, args, kwargs)
        if thread_run_here() is not None:
            raise not_durable(f"awaiting in a def workflow: {self.name!r}", f"call {self.__name__}.blocking(...)")
        function: Callable[..., Coroutine[Any, Any, R]] = self.function
        return function(*args, **kwargs)

    def blocking(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The form for ``def`` workflows: run it as a child and wait for its result.

        Raises what the child raised; outside a ``def`` workflow, :class:`NotDurableError`.
        """
        run = thread_run_here()
        if run is None:
            raise not_durable(f"{self.__name__}.blocking(...) outside a def workflow", f"await {self.__name__}(...)")
        start, base = self._child(run, args, kwargs)
        result: R = run.call_child(start, base, self.result)
        return result


class SyncWorkflow(WorkflowDefinition[P, R]):
    """A ``def`` workflow, which runs in a thread. Called in another one it is a child; an async workflow awaits
    :meth:`in_thread`; anywhere else it is just its function.

    When it is cancelled, the blocking call that it waits in, or the next, raises ``asyncio.CancelledError``.
    """

    is_async = False
    run_class = ThreadRun

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it. Raises :class:`NotDurableError` in an async workflow, which it would block."""
        if type(_get_running_loop()) is WorkflowLoop:
            raise not_durable(f"calling def workflow {self.name!r}", f"write await {self.__name__}.in_thread(...)")
        run = thread_run_here()
        result: R
        if run is None:
            result = self.function(*args, **kwargs)
        else:
            start, base = self._child(run, args, kwargs)
            result = run.call_child(start, base, self.result)
        return result

    async def in_thread(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The form for async code: in a workflow, a child; anywhere else, the function in a thread."""
        loop = _get_running_loop()
        if type(loop) is not WorkflowLoop:
            return await asyncio.to_thread(self, *args, **kwargs)
        result: R = await self._as_child(loop.run, args, kwargs)
        return result
