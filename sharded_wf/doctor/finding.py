"""What a check says: findings, and what could not be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from sharded_wf.limits import DOCTOR_NAMED_MAX

RUNBOOK = "docs/runbooks/doctor.md"


class Severity(IntEnum):
    """How bad a finding is. A note is worth knowing and changes no exit code; a warning will do harm if nobody cares; a
    critical finding does harm now, or may lose data."""

    NOTE = 1
    WARNING = 2
    CRITICAL = 3

    @property
    def word(self) -> str:
        """``note``, ``warning``, ``critical``."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    ``what`` was found, with its measure; ``why`` it matters; ``mend``: commands that mend it, or, where only people can
    decide, the command that shows more. ``shard``: None if it concerns the cluster. ``check``: the name of the check,
    which is also its section in the runbook.
    """

    severity: Severity
    what: str
    why: str
    mend: tuple[str, ...]
    shard: str | None = None
    check: str = ""

    @property
    def runbook(self) -> str:
        """Where to read on."""
        return f"{RUNBOOK}#{self.check}"


@dataclass(frozen=True, slots=True)
class Unseen:
    """A check, or a part of it, that could not be made on a shard. ``mend``: what would make it possible, if that is
    known."""

    check: str
    shard: str
    why: str
    mend: str | None = None


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - DOCTOR_NAMED_MAX
    return ", ".join(names[:DOCTOR_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def age(seconds: float) -> str:
    """How long: ``12 s``, ``3 min``, ``5.0 h``, ``3.1 d``."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} d"


def size(count: float) -> str:
    """How many bytes: ``64 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
