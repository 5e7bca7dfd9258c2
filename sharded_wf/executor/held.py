"""What an executor remembers of a workflow that it holds."""

from __future__ import annotations

from collections.abc import Iterable

from sharded_wf.model.history import EntryKind, History
from sharded_wf.model.workflow import CANCEL_TOPIC, PAUSE_TOPIC, TERMINATE_TOPIC, Message
from sharded_wf.workflow.host import Run

_ENDING = (EntryKind.CANCEL, EntryKind.TIMEOUT)


class Claim:
    """One claimed batch; when the last of its workflows has left, its row goes too."""

    __slots__ = ("held", "id", "schema", "slot")

    def __init__(self, id_: bytes, slot: int, schema: str, held: int) -> None:
        self.id = id_
        self.slot = slot
        self.schema = schema
        self.held = held


class Hold:
    """One held workflow: where its rows are, under which claim, and whether it is on its way out."""

    __slots__ = ("claim", "leaving", "looks", "mailed", "parent_id", "run")

    def __init__(self, claim: Claim, parent_id: str | None) -> None:
        self.claim = claim
        self.parent_id = parent_id
        self.leaving = False
        """An op that ends the holding is in a flush: ask the run for nothing more."""
        self.looks = 0
        """How many looks into its mailbox it waits for. It must not be parked before: what is found there may have been
        announced before it was awaited, and nobody announces it again."""
        self.mailed = False
        """It was offered messages: what is left of them goes when it ends."""
        self.run: Run


def is_paused(history: History, mail: Iterable[Message]) -> bool:
    """Whether a workflow is to stay parked: it is paused, nobody has cancelled or terminated it, and it has time."""
    topics = {message.topic for message in mail}
    if PAUSE_TOPIC not in topics or topics & {CANCEL_TOPIC, TERMINATE_TOPIC}:
        return False
    return not history.entries or not any(entry.kind in _ENDING for entry in history.entries)


class UnknownRun:
    """Stands where the run of a workflow would stand whose function this code does not have, or that is paused."""

    __slots__ = ("claim", "id")

    def __init__(self, id_: str) -> None:
        self.claim = None
        self.id = id_

    def drop(self) -> None:
        """Nothing to forget."""

    def children_to_end(self) -> tuple[str, ...]:
        """It never ran, and has none."""
        return ()

    def closer(self) -> str:
        """So it tells nobody."""
        return ""
