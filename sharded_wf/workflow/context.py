"""What running code may ask about itself: ``current()``.

A workflow's code is found by the loop that runs it, which costs nothing until somebody asks; steps, and ``def``
workflows, which run elsewhere, by a context variable.
"""

from __future__ import annotations

import logging
import random
from asyncio import _get_running_loop  # the one call that answers without raising where no loop runs
from collections.abc import MutableMapping
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

import msgspec

from sharded_wf.clock import UNIX_EPOCH, Microseconds
from sharded_wf.errors import OutsideWorkflow
from sharded_wf.limits import CONTINUE_AS_NEW_SUGGESTED_ENTRIES
from sharded_wf.workflow.loop import WorkflowLoop

_log = logging.getLogger("sharded_wf.workflow")


class Context:
    """Where the code that asked is running. Made by :func:`current`."""

    __slots__ = (
        "_code", "_idempotency_key", "_last_heartbeat", "_run", "attempt", "state", "step", "workflow_id",
        "workflow_name",
    )  # fmt: skip

    def __init__(
        self,
        workflow_id: str,
        workflow_name: str,
        attempt: int,
        state: Any,
        step: str | None = None,
        idempotency_key: str | None = None,
        run: RunSoFar | None = None,
        code: Code | None = None,
        last_heartbeat: bytes | None = None,
    ) -> None:
        self.workflow_id = workflow_id
        """The workflow's ID; empty in a step that was called outside any workflow."""
        self.workflow_name = workflow_name
        """The workflow's name, ``app/function``."""
        self.attempt = attempt
        """In a step, which attempt of the step this is; in a workflow, how often it has been taken up. 1, 2, 3 …"""
        self.state: Any = state
        """What the app's lifespan yielded in this process, or ``None``."""
        self.step = step
        """The name of the step that runs, or ``None`` in a workflow's own code."""
        self._idempotency_key = idempotency_key
        self._run = run
        self._code = code
        self._last_heartbeat = last_heartbeat

    @property
    def idempotency_key(self) -> str:
        """32 hexadecimal digits, the same in every attempt of this call of the step and in no other.

        Raises :class:`OutsideWorkflow` in a workflow's own code: effects belong into steps.
        """
        if self._idempotency_key is None:
            raise OutsideWorkflow("only a step has an idempotency key: put the effect into a step")
        return self._idempotency_key

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """Logs with the workflow's ID, and says nothing while the workflow's code replays what it did before. (A
        workflow that has logged something and is then parked remembers that by one recorded row.)"""
        return _WorkflowLogger(self)

    @property
    def run(self) -> int:
        """Which run of the workflow this is: 1, and one more after each ``continue_as_new``. Of no use outside a
        workflow: 1 there."""
        return 1 if self._run is None else self._run.number

    @property
    def history_length(self) -> int:
        """How many steps, timers, messages and children the workflow's code has asked for in this run: what its history
        will hold. The same on replay, so code may branch on it. 0 outside a workflow's own code."""
        return 0 if self._run is None or self._code is None else self._run.request_count

    @property
    def continue_as_new_suggested(self) -> bool:
        """Whether the history is so long that ``continue_as_new`` should be called at the next good moment."""
        return self.history_length >= CONTINUE_AS_NEW_SUGGESTED_ENTRIES

    def note_logged(self) -> None:
        """For the logger: something is logged here. What a step logs is never replayed."""
        if self._run is not None and self.step is None:
            self._run.note_logged()

    @property
    def is_replaying(self) -> bool:
        """Whether recorded results are still being handed back, or the code is only unwound, because the workflow is
        parked or given back. For logs and metrics; never branch on it."""
        return self._code is not None and self._code.replaying()

    @property
    def last_heartbeat(self) -> Any:
        """In a step, what it reported last with ``heartbeat(details)``, in this attempt or an earlier one, as plain
        JSON data; ``None`` if it never did."""
        return None if self._last_heartbeat is None else msgspec.json.decode(self._last_heartbeat)

    def now(self) -> datetime:
        """The workflow's own time, in UTC: the same on every replay. It goes on when a result comes in, and stands
        still in between.

        Raises :class:`OutsideWorkflow` in a step, which asks the real clock.
        """
        return UNIX_EPOCH + timedelta(microseconds=self._own_code("now()", "datetime.now()").code_time_us())

    def random(self, stream: str = "") -> random.Random:
        """Random numbers that are the same on every replay; not for secrets, as whoever knows the workflow's ID and its
        first start can compute them.

        Each ``stream`` goes on where it was. Branches that run at the same time take a stream each, so that it does not
        matter which of them draws first. Raises :class:`OutsideWorkflow` in a step, which uses ``random`` itself.
        """
        return self._own_code("random()", "random").stream(stream)

    def uuid4(self, stream: str = "") -> UUID:
        """A UUID that is the same on every replay, drawn from ``random(stream)``. Raises :class:`OutsideWorkflow` in a
        step, which uses ``uuid.uuid4()``, or its ``idempotency_key``."""
        return UUID(int=self._own_code("uuid4()", "uuid.uuid4()").stream(stream).getrandbits(128), version=4)

    def _own_code(self, asked: str, instead: str) -> Code:
        if self._code is None:
            raise OutsideWorkflow(f"current().{asked} is for a workflow's own code; a step uses {instead}")
        return self._code


class RunSoFar(Protocol):
    """What a run knows of itself."""

    @property
    def number(self) -> int: ...
    @property
    def request_count(self) -> int: ...
    def note_logged(self) -> None: ...


class Code(Protocol):
    """The run whose own code asks: what of it must be the same on every replay."""

    def replaying(self) -> bool:
        """Whether recorded results are still being handed back."""
        ...

    def code_time_us(self) -> Microseconds:
        """The workflow's own time."""
        ...

    def stream(self, name: str) -> random.Random:
        """The random numbers of one stream."""
        ...


class _WorkflowLogger(logging.LoggerAdapter[logging.Logger]):
    def __init__(self, context: Context) -> None:
        extra: dict[str, object] = {"workflow_id": context.workflow_id, "workflow_name": context.workflow_name}
        if context.step is not None:
            extra["step"] = context.step
        super().__init__(_log, extra)
        self._context = context

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's own name
        return not self._context.is_replaying and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        self._context.note_logged()
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return f"[{self._context.workflow_id}] {msg}", kwargs


class Scope(Protocol):
    """What stands in the context variable: a running step, or a ``def`` workflow."""

    def context(self) -> Context: ...


scope: ContextVar[Scope] = ContextVar("sharded_wf_scope")
get_scope, set_scope = scope.get, scope.set
"""Kept under names of their own for those who call them at every step: to look a method up makes an object."""


def current() -> Context:
    """What runs here: the workflow's ID, the attempt, the logger, the lifespan's state; in a step, its idempotency key.

    Raises :class:`OutsideWorkflow` where neither a workflow nor a step runs.
    """
    loop = _get_running_loop()
    if type(loop) is WorkflowLoop:
        return loop.run.context()
    running = scope.get(None)
    if running is None:
        raise OutsideWorkflow("current() was called where neither a workflow nor a step runs")
    return running.context()
