"""Transactions: steps whose body gets a connection to the workflow's own shard, and whose result is recorded by the
very transaction that the body works in. So what the body writes there happens exactly once.

What is special here is the order. An ordinary result is recorded by a flush, and flushes are in the order in which the
run asked for them. A transaction commits by itself; so its host takes care that nothing of the same run is under way
meanwhile: ``begin_commit`` gives it the next ordinal, the host lets what was recorded before become durable, commits,
delivers, and only then saves what was recorded after. Replay, which goes by ordinals, gives the same order.
"""

from __future__ import annotations

import asyncio
import inspect
from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, get_args

from sharded_wf.errors import DefinitionError
from sharded_wf.limits import TRANSACTION_TIMEOUT_SECONDS
from sharded_wf.model.history import Entry
from sharded_wf.serialization.arguments import ArgumentsCodec
from sharded_wf.workflow.context import scope
from sharded_wf.workflow.definitions import StepDefinition, _on_first_use
from sharded_wf.workflow.durability import not_durable
from sharded_wf.workflow.loop import WorkflowLoop
from sharded_wf.workflow.replay import ENDED, LIVE, RECORDING
from sharded_wf.workflow.retry import Retry
from sharded_wf.workflow.steps import UNCHANGEABLE, StepCommand
from sharded_wf.workflow.thread_run import ThreadRun, thread_run_here

if TYPE_CHECKING:
    from sharded_wf.workflow.app import App
    from sharded_wf.workflow.async_run import AsyncRun

P = ParamSpec("P")
R = TypeVar("R")
Isolation = Literal["read committed", "repeatable read", "serializable"]
"""How far a transaction is kept apart from others, as Postgres has it."""


class TransactionDefinition(StepDefinition[P, R]):
    """What both kinds of transaction share. ``P`` is the parameters after the connection."""

    def __init__(
        self,
        app: App,
        function: Callable[..., Any],
        name: str,
        namespace: dict[str, Any] | None,
        retry: Retry | None,
        timeout: timedelta | float | None,
        isolation: Isolation,
    ) -> None:
        super().__init__(
            app, function, name, namespace, retry, TRANSACTION_TIMEOUT_SECONDS if timeout is None else timeout
        )
        if isolation not in get_args(Isolation):
            raise DefinitionError(f"transaction {name!r}: isolation={isolation!r}: one of {get_args(Isolation)}")
        self.isolation: Isolation = isolation
        self.command = TransactionCommand
        self.plain = False
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):  # fmt: skip
            raise DefinitionError(f"transaction {name!r}: its first parameter is the connection, which it lacks")

    @_on_first_use
    def arguments(self) -> ArgumentsCodec:
        """How the arguments after the connection are stored."""
        signature = inspect.signature(self.function)

        def call() -> None: ...

        call.__name__ = self.function.__name__
        after = [
            p.replace(kind=p.POSITIONAL_OR_KEYWORD) if p.kind is p.POSITIONAL_ONLY else p
            for p in list(signature.parameters.values())[1:]
        ]
        call.__signature__ = signature.replace(parameters=after)  # type: ignore[attr-defined]
        return ArgumentsCodec(call, {}, self.name, typed=False)

    def _outside(self) -> Exception:
        return not_durable(
            f"transaction {self.name!r} outside a workflow's own code, where there is no shard to be connected to",
            "call it in a workflow; a test can call its .function with a connection",
        )


class AsyncTransaction(TransactionDefinition[P, R]):
    """An ``async def`` transaction. Awaited in a workflow, without the connection."""

    is_async = True

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """The transaction as a coroutine; nothing happens before it is awaited. Raises :class:`NotDurableError`
        outside an async workflow."""
        loop = _get_running_loop()
        if type(loop) is not WorkflowLoop:
            if type(scope.get(None)) is ThreadRun:
                raise not_durable(
                    f"awaiting in a def workflow: transaction {self.name!r}", f"call {self.__name__}.blocking(...)"
                )
            raise self._outside()
        return _recorded(loop.run, self, args, kwargs)

    def blocking(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The form for ``def`` workflows: run it and wait for its result. Raises :class:`NotDurableError` outside."""
        run = thread_run_here()
        if run is None:
            raise self._outside()
        result: R = run.issue_step(self, args, kwargs)
        return result


class SyncTransaction(TransactionDefinition[P, R]):
    """A ``def`` transaction, which runs in a thread. Called in a ``def`` workflow, without the connection; an async
    workflow awaits :meth:`in_thread`."""

    is_async = False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it. Raises :class:`NotDurableError` outside a ``def`` workflow."""
        if type(_get_running_loop()) is WorkflowLoop:
            raise not_durable(f"calling def transaction {self.name!r}", f"write await {self.__name__}.in_thread(...)")
        run = thread_run_here()
        if run is None:
            raise self._outside()
        result: R = run.issue_step(self, args, kwargs)
        return result

    async def in_thread(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The form for async workflows. Raises :class:`NotDurableError` outside."""
        loop = _get_running_loop()
        if type(loop) is not WorkflowLoop:
            raise self._outside()
        result: R = await _recorded(loop.run, self, args, kwargs)
        return result


async def _recorded(
    run: AsyncRun, definition: TransactionDefinition[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    command = run.issue_step(definition, args, kwargs)
    try:
        return await command.future
    except asyncio.CancelledError:
        command.abandon()
        raise


class TransactionCommand(StepCommand):
    """One call of a transaction by a workflow's code. The host drives it: see ``Host.transact``."""

    __slots__ = ()
    step: TransactionDefinition[Any, Any]  # pyright: ignore[reportIncompatibleVariableOverride]

    def describe(self) -> str:
        return super().describe().replace("step", "transaction", 1)

    def launch(self) -> None:
        run = self.run
        run.busy += 1
        self.started_at = run.host.clock.now_us()
        assert self.variables is not None
        variables = self.variables.copy()
        variables.run(scope.set, self)
        self.running = run.host.transact(run, self, variables)

    # The host asks, on its loop but for `call`

    def call(self, connection: Any) -> Any:
        """Call the body; of an ``async def`` this is the coroutine. Each try gets its own copy of the arguments."""
        plain = not self.kwargs and UNCHANGEABLE.issuperset(map(type, self.args))
        args, kwargs = (self.args, self.kwargs) if plain else self._copied()
        return self.step.function(connection, *args, **kwargs)

    def is_wanted(self, attempt: int) -> bool:
        """Whether attempt number ``attempt`` may still go on and commit."""
        return self.phase == LIVE and attempt == self.attempt and not self.run.stopped

    def begin_commit(self, result: Any) -> Entry:
        """The body returned ``result``: the entry to commit with it. From here on the code can't give it up. Raises if
        the result can't be stored."""
        run = self.run
        output, self.value = self.step.result.store(result)
        self.phase = RECORDING
        run.last_ordinal = ordinal = run.last_ordinal + 1
        return Entry(
            self.place, ordinal, self.kind, self.name, self.fingerprint, output, None, self.started_at,
            run.host.clock.now_us(),
        )  # fmt: skip

    def committed(self) -> None:
        """The entry is durable; the host delivers it next."""
        self.running = None
        self.variables = None

    def not_committed(self) -> bool:
        """The commit failed; nothing is written, the ordinal is free again. Whether the code still waits for it."""
        run = self.run
        run.last_ordinal -= 1
        if self.future.done():
            self.phase = ENDED
            self.running = None
            run.busy -= 1
            run.forget(self)
            run.note_waiting()
            return False
        self.phase = LIVE
        return True
