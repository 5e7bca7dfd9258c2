"""An app: the workflows and steps that belong together, and run in one process.

There is no registry but the app itself, and nothing global: what an executor can run is what its app knows.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from sharded_wf.errors import DefinitionError
from sharded_wf.limits import QUEUE_LENGTH_MAX_BYTES
from sharded_wf.model.workflow import DEFAULT_QUEUE
from sharded_wf.workflow.definitions import (
    AsyncStep,
    AsyncWorkflow,
    StepDefinition,
    SyncStep,
    SyncWorkflow,
    WorkflowDefinition,
)
from sharded_wf.workflow.mapping import MAP_NAME, PAGE_NAME, run_map, run_page
from sharded_wf.workflow.retry import Retry
from sharded_wf.workflow.signatures import check_function, check_name, local_namespace
from sharded_wf.workflow.transactions import AsyncTransaction, Isolation, SyncTransaction

P = ParamSpec("P")
R = TypeVar("R")
_FRAMES_WITH_OPTIONS = 2
_FRAMES_WITHOUT = 3
"""How far :func:`local_namespace` is from the code that decorates."""


# A coroutine function is a function too, so the overloads below overlap; checkers take the first that fits, as meant.


class StepDecorator(Protocol):
    """What ``@app.step(...)`` with options is."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncStep[P, R]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, function: Callable[P, R], /) -> SyncStep[P, R]: ...


class TransactionDecorator(Protocol):
    """What ``@app.transaction(...)`` with options is."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> AsyncTransaction[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> SyncTransaction[P, R]: ...


class WorkflowDecorator(Protocol):
    """What ``@app.workflow(...)`` with options is."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncWorkflow[P, R]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, function: Callable[P, R], /) -> SyncWorkflow[P, R]: ...


class App:
    """The workflows and steps named ``name/...``.

    With a ``version``, work started by this app is taken up only by executors of the same version, or of one that names
    it in ``upgrades``: the versions whose open workflows this code goes on with (``None`` stands for those that were
    started without a version). What it took up is of its own version from then on. See docs/versions.md.
    Raises :class:`DefinitionError` for a name that can't be stored.
    """

    def __init__(self, name: str, *, version: str | None = None, upgrades: Iterable[str | None] = ()) -> None:
        if "/" in name or "@" in name:
            raise DefinitionError(f"App({name!r}): a name without '/' and '@', which separate it from others")
        self.name = check_name(name, "App")
        self.version = version
        self.capability = _capability(name, version)
        """What an executor must be able to run to take this app's work."""
        if isinstance(upgrades, str):
            raise DefinitionError(f"App({name!r}, upgrades={upgrades!r}): a list of versions, as in [{upgrades!r}]")
        self.upgraded = tuple(_capability(name, earlier) for earlier in upgrades if earlier != version)
        """The capabilities of earlier versions whose work this code goes on with."""
        self._workflows: dict[str, WorkflowDefinition[Any, Any]] = {}
        self._own_workflows: dict[str, WorkflowDefinition[Any, Any]] = {}
        self._steps: dict[str, StepDefinition[Any, Any]] = {}
        for function, own_name in ((run_map, MAP_NAME), (run_page, PAGE_NAME)):
            own = AsyncWorkflow[Any, Any](self, function, f"{name}/{own_name}", None, DEFAULT_QUEUE)
            self._own_workflows[own.name] = own
        self._lifespan: Callable[[App], AbstractAsyncContextManager[Any]] | None = None

    def __repr__(self) -> str:
        return f"<App {self.capability}: {len(self._workflows)} workflows, {len(self._steps)} steps>"

    @property
    def workflows(self) -> Mapping[str, WorkflowDefinition[Any, Any]]:
        """The workflows by full name, ``app/function``."""
        return MappingProxyType(self._workflows)

    @property
    def own_workflows(self) -> Mapping[str, WorkflowDefinition[Any, Any]]:
        """The workflows that every app has (those that run maps), by full name, ``app/$function``."""
        return MappingProxyType(self._own_workflows)

    def find_workflow(self, name: str) -> WorkflowDefinition[Any, Any] | None:
        """The workflow with this full name, one of the user's or of the app's own."""
        return self._workflows.get(name) or self._own_workflows.get(name)

    @property
    def steps(self) -> Mapping[str, StepDefinition[Any, Any]]:
        """The steps by name."""
        return MappingProxyType(self._steps)

    def capabilities(self) -> list[str]:
        """All that an executor of this app can run: work of its version, of those that it upgrades, of the functions
        that are pinned to its version; and functions by name, whose work an executor without them has put back."""
        pinned = sorted({one.capability for one in self._workflows.values()} - {self.capability})
        return [self.capability, *self.upgraded, *pinned, *self._workflows, *self._own_workflows]

    def check(self) -> None:
        """Resolve all annotations now. Raises :class:`DefinitionError` if one names nothing, or JSON can't hold it."""
        for definition in (*self._workflows.values(), *self._steps.values()):
            definition.check()

    @overload
    def step(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncStep[P, R]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    @overload
    def step(self, function: Callable[P, R], /) -> SyncStep[P, R]: ...
    @overload
    def step(
        self,
        /,
        *,
        retry: Retry | None = None,
        timeout: timedelta | float | None = None,
        total_timeout: timedelta | float | None = None,
        heartbeat: timedelta | float | None = None,
        name: str | None = None,
    ) -> StepDecorator: ...

    def step(
        self,
        function: Any = None,
        /,
        *,
        retry: Retry | None = None,
        timeout: timedelta | float | None = None,
        total_timeout: timedelta | float | None = None,
        heartbeat: timedelta | float | None = None,
        name: str | None = None,
    ) -> Any:
        """Make a function a step: in a workflow its result is recorded before the next line runs, and never lost.

        ``retry``: when it is tried again, by default never. ``timeout``: seconds or ``timedelta`` for each attempt; an
        ``async def`` is cancelled, a ``def`` can't be stopped, and what it returns later is ignored. ``total_timeout``:
        for all attempts together with the waits between them, counted from the call (the field's schedule-to-close).
        ``heartbeat``: how long it may be silent; an attempt that does not call ``heartbeat(...)`` for so long has
        failed (``math.inf``: it may be silent, and still reports). ``name``: what it is recorded as, by default the
        function's name. Raises :class:`DefinitionError` for a method, or a name that is
        taken.
        """

        frames = _FRAMES_WITH_OPTIONS if function is None else _FRAMES_WITHOUT

        def decorate(function: Callable[..., Any]) -> Any:
            check_function(function, "step")
            step_name = check_name(function.__name__ if name is None else name, "step")
            namespace = local_namespace(function, frames)
            kind = AsyncStep if inspect.iscoroutinefunction(function) else SyncStep
            definition: StepDefinition[Any, Any] = kind(
                self, function, step_name, namespace, retry, timeout, total_timeout, heartbeat
            )
            _add(self._steps, definition, "step")
            return definition

        return decorate if function is None else decorate(function)

    @overload
    def transaction(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> AsyncTransaction[P, R]: ...
    @overload
    def transaction(self, function: Callable[Concatenate[Any, P], R], /) -> SyncTransaction[P, R]: ...
    @overload
    def transaction(
        self,
        /,
        *,
        isolation: Isolation = "read committed",
        retry: Retry | None = None,
        timeout: timedelta | float | None = None,
        name: str | None = None,
    ) -> TransactionDecorator: ...

    def transaction(
        self,
        function: Any = None,
        /,
        *,
        isolation: Isolation = "read committed",
        retry: Retry | None = None,
        timeout: timedelta | float | None = None,
        name: str | None = None,
    ) -> Any:
        """Make a function a transaction: a step whose first parameter is a psycopg connection to the workflow's own
        shard, in a transaction that records the step's result when it commits. What it writes there happens exactly
        once. ``async def`` gets a ``psycopg.AsyncConnection``, ``def`` a ``psycopg.Connection``; the workflow calls it
        without the connection.

        ``isolation``: Postgres' level. ``timeout``: for one try of the body, by default 30 seconds. Serialization
        failures and deadlocks are tried again by themselves; ``retry``: when other errors are. ``name`` and what is
        raised: as ``step``; also :class:`DefinitionError` for a function without parameters.
        """

        frames = _FRAMES_WITH_OPTIONS if function is None else _FRAMES_WITHOUT

        def decorate(function: Callable[..., Any]) -> Any:
            check_function(function, "transaction")
            step_name = check_name(function.__name__ if name is None else name, "transaction")
            namespace = local_namespace(function, frames)
            kind = AsyncTransaction if inspect.iscoroutinefunction(function) else SyncTransaction
            definition: StepDefinition[Any, Any] = kind(self, function, step_name, namespace, retry, timeout, isolation)
            _add(self._steps, definition, "step")
            return definition

        return decorate if function is None else decorate(function)

    @overload
    def workflow(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncWorkflow[P, R]: ...  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    @overload
    def workflow(self, function: Callable[P, R], /) -> SyncWorkflow[P, R]: ...
    @overload
    def workflow(
        self,
        /,
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        timeout: timedelta | float | None = None,
        run_timeout: timedelta | float | None = None,
        pinned: bool = False,
    ) -> WorkflowDecorator: ...

    def workflow(
        self,
        function: Any = None,
        /,
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        timeout: timedelta | float | None = None,
        run_timeout: timedelta | float | None = None,
        pinned: bool = False,
    ) -> Any:
        """Make a function a workflow, known as ``app/function`` or ``app/name``.

        ``queue``: where it waits to be taken up, unless ``client.start`` says otherwise. ``timeout``: how
        long it may take from its start on (unless ``client.start`` says otherwise), ``run_timeout``: from the moment on
        when it (or, after ``continue_as_new``, its next run) is first taken up; seconds or ``timedelta``. When the time
        is over its code is cancelled at its next ``await``, and it fails with :class:`WorkflowTimedOut`. Its children
        have no more time than itself. ``pinned``: it stays with the app's version that started it, also if a later one
        upgrades the others. Raises :class:`DefinitionError` for a method, or a name that is taken.
        """
        if not queue or len(queue.encode()) > QUEUE_LENGTH_MAX_BYTES:
            raise DefinitionError(f"queue={queue!r}: text of 1 to {QUEUE_LENGTH_MAX_BYTES} bytes")

        frames = _FRAMES_WITH_OPTIONS if function is None else _FRAMES_WITHOUT

        def decorate(function: Callable[..., Any]) -> Any:
            check_function(function, "workflow")
            full_name = check_name(f"{self.name}/{function.__name__ if name is None else name}", "workflow")
            namespace = local_namespace(function, frames)
            kind = AsyncWorkflow if inspect.iscoroutinefunction(function) else SyncWorkflow
            definition: WorkflowDefinition[Any, Any] = kind(
                self, function, full_name, namespace, queue, timeout, run_timeout, pinned=pinned
            )
            _add(self._workflows, definition, "workflow")
            return definition

        return decorate if function is None else decorate(function)

    def lifespan(self, function: Callable[[Any], AsyncIterator[R]]) -> Callable[[Any], AsyncIterator[R]]:
        """What each executor process opens once: ``async def lifespan(app): ...; yield state``, then closes.

        The state is ``current().state`` in steps and workflows. Raises :class:`DefinitionError` for a second one, or a
        function that is no async generator.
        """
        if self._lifespan is not None:
            raise DefinitionError(f"App {self.name!r} has a lifespan already")
        if not inspect.isasyncgenfunction(function):
            hint = "; leave @asynccontextmanager out" if hasattr(function, "__wrapped__") else ""
            raise DefinitionError(f"@app.lifespan: `async def {function.__name__}(app)` that yields once{hint}")
        if len(inspect.signature(function).parameters) != 1:
            raise DefinitionError(f"@app.lifespan: {function.__name__} takes one argument, the app")
        self._lifespan = asynccontextmanager(cast("Callable[[App], AsyncGenerator[R, None]]", function))
        return function

    def open_lifespan(self) -> AbstractAsyncContextManager[Any]:
        """For executors: a context manager that gives the lifespan's state, or ``None`` without a lifespan."""
        return _nothing() if self._lifespan is None else self._lifespan(self)


def _capability(name: str, version: str | None) -> str:
    if version is None:
        return name
    if "/" in check_name(version, "the version of an App"):
        raise DefinitionError(f"App({name!r}, version={version!r}): a version without '/'")
    return f"{name}@{version}"


@asynccontextmanager
async def _nothing() -> AsyncGenerator[None, None]:
    yield None


_D = TypeVar("_D", bound=StepDefinition[Any, Any] | WorkflowDefinition[Any, Any])


def _add(known: dict[str, _D], definition: _D, what: str) -> None:
    other = known.get(definition.name)
    if other is not None:
        raise DefinitionError(
            f"two {what}s are named {definition.name!r}: {other.__module__}.{other.__qualname__} and"
            f" {definition.__module__}.{definition.__qualname__}; give one another name, as in @app.{what}(name=...)"
        )
    known[definition.name] = definition
