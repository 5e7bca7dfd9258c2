"""Which recorded result belongs to which request of the code. Pure: knows neither asyncio nor the host.

Each thing that the code asks for is a *command*. It is known by what it is, not by when it was asked: its kind, its
name, and a fingerprint of its arguments, into which the number of equal requests before it is folded. So a second
Python, which may take turns in a slightly different order, finds the same results; and of two equal requests of which
only the second has a result, the second gets it.

Results are handed back one at a time, in the order in which they were recorded, each only when the code has gone as far
as it can with those before. Code that takes another way than the recorded one is noticed there: the next result belongs
to nothing that was asked for.
"""

from __future__ import annotations

from typing import Any, Protocol, assert_never

from sharded_wf.errors import NonDeterminismError
from sharded_wf.model.history import UNASKED, Entry, EntryKind, FailedAttempt, History
from sharded_wf.workflow.resumption import resumed

ISSUED = 0
"""Asked for by the code; nothing is recorded of it and nothing done about it yet."""
MATCHED = 1
"""Its result is in the history and will be delivered in its turn."""
LIVE = 2
"""Under way."""
RECORDING = 3
"""Has its result, which is being made durable."""
ENDED = 4
"""Nothing more will come of it: delivered, or given up."""

_FOLD = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_HALF = 1 << 63
_NONE: frozenset[int] = frozenset()


def fold(fingerprint: int, before: int) -> int:
    """The fingerprint of a request that was preceded by ``before`` equal ones: signed, 64 bits."""
    return ((fingerprint + before * _FOLD + _HALF) & _MASK) - _HALF


class Command(Protocol):
    """What replay knows of a request."""

    kind: EntryKind
    name: str
    place: int
    fingerprint: int
    phase: int

    def describe(self) -> str:
        """The request as an error message shows it."""
        ...


class Replay:
    """The requests of one run, and the recorded results that are still to be handed back."""

    __slots__ = (
        "attempts",
        "commands",
        "counts",
        "entries",
        "fresh",
        "late",
        "loose",
        "next_place",
        "passed",
        "position",
        "recorded",
        "restarted",
        "taken",
        "total",
    )

    def __init__(self, history: History) -> None:
        entries = history.entries
        self.taken = self.loose = self.restarted = _NONE
        self.passed: set[int] | frozenset[int] = _NONE
        """The places of loose entries that nobody had asked for when it was their turn."""
        self.late: list[Entry] | None = None
        """Those of them that have been asked for since: to be handed over next."""
        self.recorded: dict[int, Entry] | None = None
        if entries:
            self.taken = frozenset([e.place for e in entries])
            again = resumed(entries)
            if again is not None:
                entries, self.loose, self.restarted = again
                self.passed = set()
            self.recorded = {e.fingerprint: e for e in reversed(entries) if e.kind not in UNASKED}
        self.entries = entries
        self.total = len(entries)
        self.position = 0
        self.commands: dict[int, Any] = {}
        """Requests by place, in the order in which they were made, until their result is delivered."""
        self.fresh: list[Any] = []
        """Requests without a recorded result, on which nothing has been done yet."""
        self.counts: dict[int, int] = {}
        self.next_place = 0
        # The last attempt of each step; earlier ones are only for the reader.
        self.attempts: dict[int, FailedAttempt] | None = None
        if history.attempts:
            self.attempts = {a.place: a for a in sorted(history.attempts, key=lambda a: a.attempt)}

    def issue(self, command: Any, base: int) -> None:
        """Give ``command`` its fingerprint, made from ``base``, and its place; find out whether its result is
        recorded."""
        counts = self.counts
        if base in counts:
            fingerprint = fold(base, counts[base])
            counts[base] += 1
        else:
            fingerprint = base
            counts[base] = 1
        command.fingerprint = fingerprint
        if self.recorded is not None:
            entry = self.recorded.get(fingerprint)
            if entry is not None and entry.kind == command.kind and entry.name == command.name:
                command.phase = MATCHED
                command.place = entry.place
                self.commands[entry.place] = command
                if entry.place in self.passed:
                    self.passed -= {entry.place}
                    self.late = [*(self.late or ()), entry]
                return
            place = self.next_place
            while place in self.taken:
                place += 1
        else:
            place = self.next_place
        self.next_place = place + 1
        command.phase = ISSUED
        command.place = place
        self.commands[place] = command
        self.fresh.append(command)

    def free_place(self) -> int:
        """The next free place, for an entry that no code asked for."""
        place = self.next_place
        while place in self.taken:
            place += 1
        self.next_place = place + 1
        return place

    def is_new(self, history: History) -> bool:
        """Whether what the code asks for now was never asked for before: all recorded results have been handed back,
        and every step that is under way, as a failed attempt or a heartbeat shows, has been asked for."""
        if self.position < self.total or self.late:
            return False
        begun = [one.place for one in history.attempts] + [one.place for one in history.heartbeats]
        return all(place < self.next_place or place in self.taken for place in begun)

    def next_entry(self) -> Entry | None:
        """The next recorded result to hand back; only valid while ``position < total`` or something is ``late``. None:
        it was a loose one, that nobody asks for.

        Raises :class:`NonDeterminismError` if the code, which has gone as far as it can, never asked for it.
        """
        if self.late:
            return self.late.pop(0)
        entry = self.entries[self.position]
        if entry.place not in self.commands and entry.kind not in UNASKED:
            if entry.place in self.loose:
                self.position += 1
                self.passed |= {entry.place}
                return None
            raise NonDeterminismError(self._mismatch(entry, "the code now asks for"))
        self.position += 1
        return entry

    def check_leftovers(self) -> None:
        """The code has ended: what is left of the history must have been asked for, or it took another way.

        Results may be left that the code asked for and did not wait for. Raises :class:`NonDeterminismError`.
        """
        for position in range(self.position, self.total):
            entry = self.entries[position]
            if entry.place not in self.commands and entry.kind not in UNASKED and entry.place not in self.loose:
                raise NonDeterminismError(self._mismatch(entry, "the code ended; it last asked for"))

    def _mismatch(self, entry: Entry, instead: str) -> str:
        recorded = f"recorded at place {entry.place} is {describe_entry(entry)}"
        asked = sorted(self.commands.values(), key=lambda command: command.phase == MATCHED)
        for command in asked:
            if command.phase != MATCHED and command.kind == entry.kind and command.name == entry.name:
                return f"{recorded}, but the code now asks for it with other arguments: {command.describe()}"
        if not asked:
            return f"{recorded}, but {instead} nothing more"
        shown = ", ".join(f"{command.describe()} (place {command.place})" for command in asked[:3])
        more = f" and {len(asked) - 3} more" if len(asked) > 3 else ""
        return f"{recorded}, but {instead} {shown}{more}"


def describe_entry(entry: Entry) -> str:
    """A recorded result as an error message shows it."""
    match entry.kind:
        case EntryKind.STEP:
            return f"step {entry.name!r}"
        case EntryKind.TIMER:
            return "a timer"
        case EntryKind.MESSAGE:
            return f"a message received on topic {entry.name!r}"
        case EntryKind.CHILD:
            return f"child workflow {entry.name!r}"
        case EntryKind.SEND:
            return f"a message sent on topic {entry.name!r}"
        case EntryKind.EVENT:
            return f"setting event {entry.name!r}"
        case EntryKind.EVENT_WAIT:
            return f"waiting for event {entry.name!r}"
        case EntryKind.CANCEL:
            return "a request to cancel"
        case EntryKind.START:
            return f"the start of child workflow {entry.name!r}"
        case EntryKind.RESUME:
            return "a resume"
        case EntryKind.ATTRIBUTES:
            return "setting attributes"
        case EntryKind.TIMEOUT:
            return "the end of the workflow's time"
        case EntryKind.PATCH:
            return f"the patch {entry.name!r}"
        case EntryKind.CONTINUED:
            return "the end of the run before"
        case EntryKind.LOGGED:
            return "a moment up to which the code has logged"
        case _:
            assert_never(entry.kind)
