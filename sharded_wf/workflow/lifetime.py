"""What a run knows of the runs before it and leaves to the next, and how its clock may jump."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from sharded_wf.errors import ShardedWfError
from sharded_wf.model.history import Entry, EntryKind, History, continuation_of, read_cancellation
from sharded_wf.model.workflow import Outcome
from sharded_wf.workflow.commands import NULL
from sharded_wf.workflow.continuation import continuation_asked_by, entry_of
from sharded_wf.workflow.parent_run import ParentRun
from sharded_wf.workflow.replay import Replay
from sharded_wf.workflow.steps import StepCommand

if TYPE_CHECKING:
    from sharded_wf.workflow.bound import Bound


class LongLivedRun(ParentRun):
    """The part of ``WorkflowRun`` that is about the workflow's whole life."""

    __slots__ = ("last_ordinal",)
    cancel_requested: bool
    history: History
    last_ordinal: int
    replay: Replay | None

    @abstractmethod
    def failed(self, error: BaseException) -> Outcome:
        """The outcome of code that ``error`` left."""

    @abstractmethod
    def take_place(self) -> int:
        """A place for an entry that no code asked for."""

    @abstractmethod
    def on_loop(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call on the host's loop, in the order of the calls; at once, if the code runs there."""

    @property
    def number(self) -> int:
        """Which run of the workflow this is: 1, and one more after each ``continue_as_new``."""
        before = continuation_of(self.history)
        return 1 if before is None else before.run

    @property
    def request_count(self) -> int:
        """How much the code of this run has asked for so far; the same on replay."""
        return 0 if self.replay is None else sum(self.replay.counts.values())

    def is_cancel(self, entry: Entry) -> bool:
        """Whether an entry that no command waits for asks the workflow to cancel (the children named there are told),
        or says that its time is over."""
        if entry.kind is EntryKind.CANCEL:
            waits = self.some_waits()
            waits.cancels.pop(entry.place, None)
            waits.cancelled_children.update(read_cancellation(entry.output).told)
            return True
        if entry.kind is EntryKind.TIMEOUT:
            self.some_waits().timed_out = True
            return True
        if entry.kind is EntryKind.CONTINUED:
            before = continuation_of(self.history)
            return before is not None and before.cancelled
        return False

    def mark(self, kind: EntryKind, name: str) -> None:
        """Record that the code came by here, and go on at once."""
        self.on_loop(self._record_mark, self.take_place(), kind, name)

    def _record_mark(self, place: int, kind: EntryKind, name: str) -> None:
        if self.stopped:
            return
        self.busy += 1
        self.last_ordinal += 1
        now_us = self.host.clock.now_us()
        self.host.record(self, Entry(place, self.last_ordinal, kind, name, 0, NULL, None, now_us, now_us))

    def note_logged(self) -> None:
        """The code has logged something."""
        self.some_waits().logged = True

    def settle(self) -> bool:
        """Replay is to be silent up to here, although nothing else may be recorded since the code logged."""
        waits = self.waits
        if waits is None or not waits.logged:
            return False
        waits.logged = False
        self.mark(EntryKind.LOGGED, "log")
        return True

    def ended_with(self, error: BaseException) -> None:
        """``error`` left the code: go on as new, if that is what it says, else this is the outcome."""
        bound = continuation_asked_by(error)
        if bound is None:
            self.end(self.failed(error))
        else:
            self._renew(bound)

    def _renew(self, bound: Bound[Any]) -> None:
        if self.must_exist_first(partial(self._renew, bound)):
            return
        try:
            entry = entry_of(self, bound)
        except ShardedWfError as failure:
            self.end(self.failed(failure))
            return
        told = () if self.waits is None else self.waits.untold(self.waits.cancelling)
        self.release()
        self.host.continue_as_new(self, entry, bound.capability, bound.queue, told)

    def time_jumped(self) -> None:
        waits = self.waits
        if waits is None or self.stopped:
            return
        for place, when in list(waits.retries.items()):
            command: Any = None if self.replay is None else self.replay.commands.get(place)
            if isinstance(command, StepCommand):
                command.wait_anew(when)
        waits.ring()
