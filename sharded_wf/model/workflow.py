"""The values that cross the bridge between a workflow's code and its rows."""

from __future__ import annotations

import msgspec

from sharded_wf.clock import Microseconds
from sharded_wf.model.attributes import Attribute
from sharded_wf.model.status import Status

DEFAULT_QUEUE = "default"
OUTCOME_TOPIC = "$outcome"
"""The reserved topic under which a child's outcome reaches its parent."""
CANCEL_TOPIC = "$cancel"
"""The reserved topic under which a request to cancel reaches a workflow."""
_CLOSER_MARK = "\x1f"
"""Between a workflow's ID and how often it had been resumed: under that name it tells children to end with it."""
REVIVED_TOPIC = "$revived"
"""What a workflow that was resumed has noted of a child: from which number on it takes the child's outcomes. The sender
is the child, the number how often the workflow had been resumed. The next resume removes it, as all such topics."""
EVENT_TOPIC = "$event"
"""The reserved topic under which a workflow that waits for an event is told to look again."""


TERMINATE_TOPIC = "$terminate"
"""A request to end at once, with no more code run."""
PAUSE_TOPIC = "$pause"
"""As long as such a message is in the mailbox, the workflow is paused: nobody receives it."""
UNPAUSE_TOPIC = "$unpause"
"""Tells an executor that holds a workflow which is paused that it is so no longer."""


def closer_name(workflow_id: str, life: int) -> str:
    """Under what name children are told to end when a workflow ends that had been resumed ``life`` times."""
    return f"{workflow_id}{_CLOSER_MARK}{life}"


def who_cancels(sender: str) -> str:
    """Who asks a workflow to end. One whose code gave up a child, and which then ended, tells it twice, under two
    names; that is one request."""
    id_, mark, life = sender.rpartition(_CLOSER_MARK)
    return id_ if mark and life.isdecimal() else sender


class Start(msgspec.Struct, frozen=True, gc=False):
    """A workflow to be started: what the caller decided. ``input`` is JSON text; ``name`` is ``app/function``."""

    id: str
    name: str
    capability: str
    queue: str
    priority: int
    input: bytes
    not_before: Microseconds | None = None
    parent_id: str | None = None
    attributes: tuple[Attribute, ...] = ()
    again: tuple[str, ...] = ()
    """A child of a workflow that was resumed: if it has ended, it is resumed too, or tells its outcome once more. These
    are the names under which its parent told children to end with it."""
    stillborn: tuple[bytes, bytes] | None = None
    """If it does not exist, it is to exist as cancelled: its error, and the outcome that its parent is told."""
    deadline: Microseconds | None = None
    """When its time is over."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """How a workflow ended: a final status, and the output or the error as JSON text."""

    status: Status
    output: bytes | None = None
    error: bytes | None = None
    cancels: tuple[str, ...] = ()
    """Children to be cancelled with it."""
    cancels_as: str = ""
    """Under what name they are told, so that they can be told from those that its code cancelled."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """A value that a workflow sets under a key, for others to see."""

    key: str
    value: bytes
    set_at: Microseconds


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message to a workflow. ``seq`` counts 1, 2, 3 … per (sender, receiver, topic), so that none overtakes
    another. Of an outcome it is how often the sender had been claimed: higher after every resume."""

    receiver: str
    topic: str
    sender: str
    seq: int
    payload: bytes
    sent_at: Microseconds
