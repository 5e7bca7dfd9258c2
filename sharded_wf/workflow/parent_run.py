"""The part of a run that has children: it starts them, waits for them, and tells them to end.

A child that the code awaits on the spot is the code's own: given up, it is told to end. One that was started to be
awaited later lives as long as its parent-close policy says. Children that end with their parent are told in the flush
that saves its outcome, so nothing can come between.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from msgspec.structs import replace

from sharded_wf.errors import WorkflowCancelled
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import Outcome, closer_name
from sharded_wf.serialization.exceptions import encode_error
from sharded_wf.serialization.outcomes import encode_outcome
from sharded_wf.workflow.child_commands import CancelChildCommand, OutcomeCommand, StartCommand
from sharded_wf.workflow.commands import Answer, ChildCommand
from sharded_wf.workflow.host import Host, Run
from sharded_wf.workflow.replay import ENDED, ISSUED, LIVE, Replay

if TYPE_CHECKING:
    from sharded_wf.model.workflow import Start
    from sharded_wf.workflow.run import WorkflowRun
    from sharded_wf.workflow.waits import Waits

_CANCEL_MARK = 0x3C41_9B2E_7D05_A6F1
"""Makes the fingerprint of a request to cancel a child from that of the child; positive, so it stays within 64 bits."""


class ParentRun(Run):
    """What a run knows of its children."""

    __slots__ = ("attempt", "busy", "host", "stopped", "waits")
    attempt: int
    busy: int
    host: Host
    replay: Replay | None
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
    def record_cancels(self, waits: Waits) -> None:
        """Honour the requests to cancel that have arrived, unless children are just being started."""

    @abstractmethod
    def release(self) -> None:
        """Stop what still runs."""

    # Starting

    def start_child(self, command: ChildCommand) -> None:
        waits = self.some_waits()
        waits.children[command.start.id] = command
        self._start(waits, command.start, ends_with_us=True)

    def start_beside(self, command: StartCommand) -> None:
        """Start a child beside which the code goes on."""
        waits = self.some_waits()
        waits.starts[command.start.id] = command
        if command.closes:
            waits.closing[command.start.id] = None
        self._start(waits, command.start, ends_with_us=command.closes)

    def _start(self, waits: Waits, start: Start, *, ends_with_us: bool) -> None:
        waits.starting.add(start.id)
        self.busy += 1
        limit = waits.limit_us
        if limit is not None and ends_with_us and (start.deadline is None or limit < start.deadline):
            start = replace(start, deadline=limit)  # it has no more time than the workflow itself
        # Of a resumed workflow: the child may have ended, and its outcome been received, or lost, before.
        again = waits.epoch > 0 and start.parent_id is not None
        self.host.start_child(self, replace(start, again=self.closers()) if again else start)

    def await_outcome(self, command: OutcomeCommand) -> None:
        """Wait for the outcome of a child that was started before; it may be in the mailbox already."""
        waits = self.some_waits()
        if waits.epoch:
            self.start_child(command)
        else:
            waits.children[command.start.id] = command
            self.host.expect_messages(self)

    def child_started(self, child_id: str, since: int = 0) -> None:
        if self.stopped:
            self._born(child_id)
            return
        self.busy -= 1
        waits = self.some_waits()
        waits.starting.discard(child_id)
        if since:
            waits.heard_since[child_id] = since
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
            self._born(child_id, refused=True)
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
        if waits.ending is not None:
            end, waits.ending = waits.ending, None
            end()
        if not (waits.starting or self.stopped):
            self.record_cancels(waits)

    # Children that are to end

    def give_up_child(self, command: ChildCommand) -> None:
        """The code no longer waits for a child that is its own: tell it to end.

        Asked for whatever became of the child meanwhile, so that replay asks for the same.
        """
        if command.phase == ENDED or self.stopped:
            return
        self.give_up(command)
        self.cancel_child(command.start.id, command.fingerprint, None)

    def cancel_child(self, child_id: str, base: int, future: Answer | None) -> None:
        """Tell a child to end, unless it was told."""
        waits = self.some_waits()
        if child_id in waits.cancelled_children:
            if future is not None:
                future.set_result(None)
            return
        command = CancelChildCommand(cast("WorkflowRun", self), child_id, future)
        # What was told before the workflow was resumed counts no more: the child may have been resumed too.
        self.issue(command, base ^ _CANCEL_MARK ^ waits.epoch)
        waits.cancelling[child_id] = command

    def tell_to_end(self, command: CancelChildCommand) -> None:
        # A child that may not exist yet could not be told: first it must.
        if command.child_id not in self.some_waits().starting:
            command.send()

    def open_children(self) -> tuple[str, ...]:
        """Children of the code's own whose outcome it still waits for, and that were not told to end."""
        waits = self.waits
        if waits is None:
            return ()
        return waits.untold(id_ for id_, child in waits.children.items() if child.own and child.phase == LIVE)

    def children_to_end(self) -> tuple[str, ...]:
        waits = self.waits
        return () if waits is None else waits.untold({**waits.closing, **dict.fromkeys(waits.cancelling)})

    # Children that an end of the workflow has closed

    def closer(self) -> str:
        """The name under which children are told to end with this life of the workflow. Not its ID, under which its
        code tells them, so that a resume knows which to resume."""
        return closer_name(self.id, 0 if self.waits is None else self.waits.epoch)

    def closers(self) -> tuple[str, ...]:
        """Those of its lives before."""
        return tuple(closer_name(self.id, epoch) for epoch in range(self.some_waits().resumes))

    def note_closing(self, child_id: str, ordinal: int) -> None:
        """A child that is to end with the workflow was started, which is the entry of this ordinal."""
        waits = self.some_waits()
        waits.closing[child_id] = None
        if ordinal < waits.resumed_at:
            self.on_loop(self.revive, child_id)

    @abstractmethod
    def on_loop(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call on the host's loop, in the order of the calls; at once, if the code runs there."""

    def revive(self, child_id: str) -> None:
        """The workflow was resumed since: so is this child, if the end of the workflow cancelled it. Asked for at every
        replay, since it is not recorded; a child that was cancelled by somebody else meanwhile stays so."""
        if not self.stopped:
            self.busy += 1
            self.host.loop.call_soon(self._ask_to_revive, child_id)  # the code's own loop may be running now

    def _ask_to_revive(self, child_id: str) -> None:
        if not self.stopped:
            self.host.revive_child(self, child_id, self.closers())

    def child_revived(self, child_id: str) -> None:
        if not self.stopped:
            self.busy -= 1
            self.note_waiting()

    # The end

    def end(self, outcome: Outcome) -> None:
        """The workflow ends with this outcome, whatever its code still does. Children that end with it are told in the
        flush that saves the outcome, so that nothing can come between; first they must exist."""
        waits = self.waits
        if waits is None and self.attempt == 1:  # the common case: it never waited for anything
            self.release()
            self._finish(outcome)
            return
        stillborn = self._stillborn(outcome)
        told = dict.fromkeys((*outcome.cancels, *self.children_to_end(), *(start.id for start in stillborn)))
        if told:
            outcome = replace(outcome, cancels=tuple(told), cancels_as=self.closer())
        unborn = set[str]() if waits is None else told.keys() & waits.starting
        unborn.update(start.id for start in stillborn)
        self.release()
        if not unborn:
            self._finish(outcome)
            return
        self.waits = waits = self.some_waits() if waits is None else waits
        waits.unborn, waits.outcome = unborn, outcome
        for start in stillborn:
            self.host.loop.call_soon(self.host.start_child, self, start)

    def _finish(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.host.finish(self, outcome)

    def _born(self, child_id: str, *, refused: bool = False) -> None:
        """After the end: a child exists that is to be told, or never will."""
        waits = self.waits
        if waits is None or waits.outcome is None or child_id not in waits.unborn:
            return
        waits.unborn.discard(child_id)
        if refused:  # what has this ID is nobody's that we know
            waits.outcome = replace(
                waits.outcome, cancels=tuple(id_ for id_ in waits.outcome.cancels if id_ != child_id)
            )
        if not waits.unborn:
            self._finish(waits.outcome)

    def _stillborn(self, outcome: Outcome) -> list[Start]:
        """Children that are to end with the workflow, and that only an executor which had it before may have begun to
        start: if they do not exist, they are to exist as cancelled, so that nobody can start them any more."""
        replay, waits = self.replay, self.waits
        if self.attempt == 1 or replay is None:
            return []
        starts = [] if waits is None else list(waits.unbegun)
        for command in self.unbegun():
            if command.phase != ISSUED:
                continue
            inline = isinstance(command, ChildCommand) and command.own and outcome.status is Status.CANCELLED
            if inline or (isinstance(command, StartCommand) and command.closes):
                starts.append(command.start)
        text = f"workflow {self.id!r} ended before this child of it ran"
        error = encode_error(WorkflowCancelled("WorkflowCancelled", text))
        told = encode_outcome(Outcome(Status.CANCELLED, None, error))
        return [replace(start, stillborn=(error, told)) for start in starts]

    def unbegun(self) -> list[Any]:
        """What the code has asked for and was not begun."""
        return [] if self.replay is None else self.replay.fresh

    def must_exist_first(self, end: Callable[[], None]) -> bool:
        """Whether a child that is to be told of the end is only just being started. Then ``end`` is called as soon as
        it exists."""
        waits = self.waits
        if waits is None or waits.starting.isdisjoint(self.children_to_end()):
            return False
        waits.ending = end
        return True
