"""The part of a run that has children: it starts them, waits for them, and tells them to end.

A child that the code awaits on the spot is the code's own: given up, it is told to end. One that was started to be
awaited later lives as long as its parent-close policy says. Children that end with their parent are told in the flush
that saves its outcome, so nothing can come between.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, cast

from sharded_wf.workflow.child_commands import CancelChildCommand, StartCommand
from sharded_wf.workflow.commands import Answer, ChildCommand
from sharded_wf.workflow.host import Host, Run
from sharded_wf.workflow.replay import ENDED, LIVE

if TYPE_CHECKING:
    from sharded_wf.model.workflow import Outcome
    from sharded_wf.workflow.run import WorkflowRun
    from sharded_wf.workflow.waits import Waits

_CANCEL_MARK = 0x3C41_9B2E_7D05_A6F1
"""Makes the fingerprint of a request to cancel a child from that of the child; positive, so it stays within 64 bits."""


class ParentRun(Run):
    """What a run knows of its children."""

    __slots__ = ("busy", "host", "stopped", "waits")
    busy: int
    host: Host
    stopped: bool
    waits: Waits | None

    @abstractmethod
    def some_waits(self) -> Waits:
        """What the run waits for; made when it is first needed."""

    @abstractmethod
    def issue(self, command: Any, base: int) -> None:
        """The code asks for ``command``."""

    @abstractmethod
    def give_up(self, command: Any) -> None:
        """The code no longer waits for a command."""

    @abstractmethod
    def note_waiting(self) -> None:
        """Remember since when nothing is under way."""

    @abstractmethod
    def conclude(self, outcome: Outcome) -> None:
        """This is the outcome."""

    def start_child(self, command: ChildCommand) -> None:
        waits = self.some_waits()
        waits.children[command.start.id] = command
        waits.starting.add(command.start.id)
        self.busy += 1
        self.host.start_child(self, command.start)

    def start_beside(self, command: StartCommand) -> None:
        """Start a child beside which the code goes on."""
        waits = self.some_waits()
        waits.starts[command.start.id] = command
        waits.starting.add(command.start.id)
        if command.closes:
            waits.closing[command.start.id] = None
        self.busy += 1
        self.host.start_child(self, command.start)

    def child_started(self, child_id: str) -> None:
        if self.stopped:
            return
        self.busy -= 1
        waits = self.some_waits()
        waits.starting.discard(child_id)
        start = waits.starts.pop(child_id, None)
        if start is not None:
            start.started()
        child = waits.children.get(child_id)
        if child is not None and child.phase == LIVE:
            self.host.expect_messages(self)
        self._tell_now(waits, child_id)
        self.note_waiting()

    def child_refused(self, child_id: str, error: BaseException) -> None:
        if self.stopped:
            return
        self.busy -= 1
        waits = self.some_waits()
        waits.starting.discard(child_id)
        start = waits.starts.pop(child_id, None)
        if start is not None:
            waits.closing.pop(child_id, None)
            start.refuse(error)
        child = waits.children.pop(child_id, None)
        if child is not None and child.phase == LIVE:
            child.refuse(error)
        self._tell_now(waits, child_id)

    def _tell_now(self, waits: Waits, child_id: str) -> None:
        """It is known whether a child exists: tell it what it was to be told."""
        command = waits.cancelling.get(child_id)
        if command is not None and command.phase == LIVE:
            command.send()
        if waits.concluding is not None:
            self.conclude(waits.concluding)

    def await_outcome(self, command: ChildCommand) -> None:
        """Wait for the outcome of a child that was started before; it may be in the mailbox already."""
        self.some_waits().children[command.start.id] = command
        self.host.expect_messages(self)

    # Children that are to end

    def give_up_child(self, command: ChildCommand) -> None:
        """The code no longer waits for a child that is its own: tell it to end.

        Asked for whatever became of the child meanwhile, so that replay asks for the same.
        """
        if command.phase == ENDED or self.stopped:
            return
        self.give_up(command)
        child_id = command.start.id
        self.cancel_child(child_id, command.fingerprint, None)

    def cancel_child(self, child_id: str, base: int, future: Answer | None) -> None:
        """Tell a child to end, unless it was told."""
        if child_id in self.some_waits().cancelled_children:
            if future is not None:
                future.set_result(None)
            return
        command = CancelChildCommand(cast("WorkflowRun", self), child_id, future)
        self.issue(command, base ^ _CANCEL_MARK)
        self.some_waits().cancelling[child_id] = command

    def tell_to_end(self, command: CancelChildCommand) -> None:
        # A child that may not exist yet could not be told: first it must.
        if command.child_id not in self.some_waits().starting:
            command.send()

    def children_to_end(self) -> tuple[str, ...]:
        """Children that end with the workflow, and that were not told yet."""
        waits = self.waits
        if waits is None:
            return ()
        wanted = {**waits.closing, **dict.fromkeys(waits.cancelling)}
        return tuple(id_ for id_ in wanted if id_ not in waits.cancelled_children)
