"""The states of a workflow, and which may follow which.

pending ──claim──> running ──outcome──> succeeded | failed | cancelled
   ^  ^              |  |
   |  └──give back───┘  └──park──> parked ──wake──> pending
   └──takeover (the executor died)
running ──dies alone──> quarantined
failed | cancelled | quarantined ──resume, by a person──> pending
"""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Where a workflow stands; the numbers are what the rows hold and never change."""

    PENDING = 0
    RUNNING = 1
    PARKED = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5
    QUARANTINED = 6

    @property
    def is_final(self) -> bool:
        """Whether the workflow has its outcome and will not change by itself."""
        return self >= Status.SUCCEEDED

    @property
    def label(self) -> str:
        """The name people read: ``pending``, ``running``, …"""
        return self.name.lower()

    def __str__(self) -> str:
        return self.label

    def __format__(self, spec: str) -> str:
        return format(self.label, spec)


FOLLOWS: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.RUNNING, Status.CANCELLED}),
    Status.RUNNING: frozenset(
        {Status.PENDING, Status.PARKED, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.QUARANTINED}
    ),
    Status.PARKED: frozenset({Status.PENDING}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset({Status.PENDING}),
    Status.CANCELLED: frozenset({Status.PENDING}),
    Status.QUARANTINED: frozenset({Status.PENDING}),
}
"""The legal state changes."""
