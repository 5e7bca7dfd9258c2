"""``set_attributes``: what a workflow lets others search it by, recorded like everything else that it does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import mmh3
import msgspec

from sharded_wf.model.attributes import Attribute, Value, attributes_of
from sharded_wf.model.history import Entry, EntryKind
from sharded_wf.workflow.replay import ENDED, ISSUED, LIVE, RECORDING
from sharded_wf.workflow.thread_answers import ThreadAnswer
from sharded_wf.workflow.whose_code import async_run, blocking_run

if TYPE_CHECKING:
    from sharded_wf.workflow.commands import Answer
    from sharded_wf.workflow.run import WorkflowRun

_SEED = 3
_encode = msgspec.json.Encoder().encode


class AttributesCommand:
    """Attributes to be set with the flush that records it."""

    __slots__ = ("attributes", "fingerprint", "future", "phase", "place", "run")
    kind = EntryKind.ATTRIBUTES
    name = "attributes"
    place: int
    fingerprint: int
    phase: int

    def __init__(self, run: WorkflowRun, attributes: tuple[Attribute, ...], future: Answer) -> None:
        self.run = run
        self.attributes = attributes
        self.future: Any = future

    def base(self) -> int:
        """What its fingerprint is made from."""
        return int(mmh3.hash64(_encode(self.attributes), _SEED)[0])

    def describe(self) -> str:
        return f"setting the attributes {', '.join(one.name for one in self.attributes)}"

    def begin(self) -> None:
        self.phase = LIVE
        now_us = self.run.host.clock.now_us()
        self.phase = RECORDING
        self.run.record(self, _encode(self.attributes), None, now_us, now_us)

    def deliver(self, entry: Entry) -> None:
        self.phase = ENDED
        if not self.future.done():
            self.future.set_result(None)

    def abandon(self) -> None:
        if self.phase == ISSUED:
            self.run.forget(self)


class SetAttributes:
    """``await set_attributes(customer="c-42", stage=2)``; in a ``def`` workflow, ``set_attributes.blocking(...)``."""

    __slots__ = ()

    async def __call__(self, **values: Value | None) -> None:
        """Set attributes of this workflow, by which ``client.list(where=...)`` finds it; None removes one. Others stay
        as they are. When it returns, they are durable.

        Raises :class:`LimitExceeded`, :class:`UnstorableValue`, and :class:`OutsideWorkflow` anywhere but in an async
        workflow's code.
        """
        run = async_run("set_attributes")
        command = AttributesCommand(run, attributes_of(values), run.loop.create_future())
        run.issue(command, command.base())
        try:
            await command.future
        except asyncio.CancelledError:
            command.abandon()
            raise

    def blocking(self, **values: Value | None) -> None:
        """The same for ``def`` workflows."""
        run = blocking_run("set_attributes")
        command = AttributesCommand(run, attributes_of(values), ThreadAnswer())
        run.ask(command, command.base())


set_attributes = SetAttributes()
