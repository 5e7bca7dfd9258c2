"""A handle on one workflow: its ID, and the type of its result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from sharded_wf.clock import SECOND_US, microseconds_of
from sharded_wf.errors import ResultTimeout, WorkflowCancelled, WorkflowNotFound, WorkflowTerminated
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import Outcome
from sharded_wf.serialization import codec_for, decode_error
from sharded_wf.store.workflows import Description

if TYPE_CHECKING:
    from sharded_wf.client.client import Client

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Handle(Generic[T_co]):
    """One workflow, wherever it runs. Handles are cheap: they hold no connection, and outlive the process in their
    ID."""

    __slots__ = ("_client", "_decode", "_started_at", "created", "id")

    def __init__(
        self,
        client: Client,
        id_: str,
        decode: Callable[[bytes], T_co],
        created: bool | None,
        started_at: float | None,
    ) -> None:
        self._client = client
        self._decode = decode
        self._started_at = started_at
        self.id = id_
        """The workflow's ID."""
        self.created = created
        """Whether this start created the workflow; False if it existed; None for a handle that was only looked up."""

    async def result(self, timeout: timedelta | float | None = None) -> T_co:  # noqa: ASYNC109 - the field's own form
        """Wait for the workflow's result, ``timeout`` at most (seconds or ``timedelta``; None: as long as it takes).

        Raises what the workflow raised: the same class where it can be imported, else ``WorkflowFailed``;
        ``WorkflowCancelled``, ``WorkflowQuarantined``; ``ResultTimeout`` (the workflow goes on); ``WorkflowNotFound``.
        """
        waiting = self._client.wait_for_outcome(self.id, self._started_at)
        if timeout is None:
            return self._result_of(await waiting)
        seconds = microseconds_of(timeout) / SECOND_US
        try:
            return self._result_of(await asyncio.wait_for(waiting, seconds))
        except TimeoutError:
            if waiting.done() and not waiting.cancelled():
                raise  # the workflow's own TimeoutError
            raise ResultTimeout(f"workflow {self.id!r} had no result within {seconds:g} s; it goes on") from None

    def _result_of(self, outcome: Outcome) -> T_co:
        if outcome.status is Status.SUCCEEDED:
            return self._decode(outcome.output or b"null")
        if outcome.status is Status.CANCELLED:
            error = decode_error(outcome.error or b"null")
            if isinstance(error, WorkflowTerminated):
                raise error
            raise WorkflowCancelled("WorkflowCancelled", f"workflow {self.id!r} was cancelled")
        raise decode_error(outcome.error or b"null")

    @overload
    async def event(self, key: str, kind: type[T], *, timeout: timedelta | float | None = None) -> T: ...  # noqa: ASYNC109
    @overload
    async def event(self, key: str, kind: Any = ..., *, timeout: timedelta | float | None = None) -> Any: ...  # noqa: ASYNC109

    async def event(
        self,
        key: str,
        kind: Any = Any,
        *,
        timeout: timedelta | float | None = None,  # noqa: ASYNC109 - the field's own form
    ) -> Any:
        """The latest value that the workflow has set under ``key``, as a value of type ``kind``; waits until there is
        one, ``timeout`` at most (seconds or ``timedelta``; None: as long as it takes).

        Raises ``ResultTimeout`` (the workflow goes on), ``EventNeverSet`` if the workflow ended without it,
        ``WorkflowNotFound``, ``StoredValueMismatch`` if the value is no ``kind``.
        """
        waiting = self._client.wait_for_event(self.id, key)
        if timeout is None:
            return codec_for(kind).decode(await waiting)
        seconds = microseconds_of(timeout) / SECOND_US
        try:
            value = await asyncio.wait_for(waiting, seconds)
        except TimeoutError:
            raise ResultTimeout(f"workflow {self.id!r} did not set event {key!r} within {seconds:g} s") from None
        return codec_for(kind).decode(value)

    async def describe(self) -> Description:
        """All that is known of the workflow now. Raises ``WorkflowNotFound``."""
        description = await self._client.describe(self.id)
        if description is None:
            raise WorkflowNotFound(f"no workflow has the ID {self.id!r}")
        return description

    async def status(self) -> Status:
        """Where the workflow stands now. Raises ``WorkflowNotFound``."""
        return (await self.describe()).status

    async def cancel(self, *, cleanup: timedelta | float | None = None) -> None:
        """Ask the workflow to end: at once if it never ran, else at its next ``await``. The children that it waits for
        are asked too. What it awaits in ``except`` and ``finally`` still runs, for ``cleanup`` at most (seconds or
        ``timedelta``; None: ``limits.CANCEL_CLEANUP_SECONDS``); then it is ended as it is. Cancelling what has ended
        changes nothing. Raises ``WorkflowNotFound``, ``ShardUnavailable``."""
        await self._client.cancel(self.id, cleanup=cleanup)

    async def terminate(self) -> None:
        """End the workflow: none of its code runs any more, no clean-up either. A step that runs is stopped, if it is
        ``async``, and its result is lost. The children that it waits for are cancelled. Its result is
        ``WorkflowTerminated``. Raises ``WorkflowNotFound``, ``ShardUnavailable``."""
        await self._client.terminate(self.id)

    async def pause(self) -> None:
        """Let the workflow begin nothing more: a step that runs comes to its end and is recorded; then it waits, and
        messages for it wait too. Timers go on. Pausing what is paused or has ended changes nothing. Raises
        ``WorkflowNotFound``, ``ShardUnavailable``."""
        await self._client.pause(self.id)

    async def unpause(self) -> None:
        """Let a paused workflow go on. Raises ``WorkflowNotFound``, ``ShardUnavailable``."""
        await self._client.unpause(self.id)

    def __repr__(self) -> str:
        return f"Handle({self.id!r})"
