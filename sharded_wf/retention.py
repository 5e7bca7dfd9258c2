"""How long finished workflows are kept: what users say, checked. What is done about it: ``maintenance.retention``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from sharded_wf.clock import seconds_of
from sharded_wf.errors import ConfigError
from sharded_wf.limits import RETENTION_AGE_MIN_SECONDS, RETENTION_AGES_MAX

Age = str | timedelta | float | None
"""``"30 days"``, a ``timedelta``, or seconds; ``"forever"`` or None: never."""

_UNITS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86_400,
          "day": 86_400, "w": 604_800, "week": 604_800}  # fmt: skip
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.IGNORECASE)
_RULE = 'write a number and a unit, such as "30 days", "12 hours" or "90 min", or "forever"'


def parse_age(age: object, where: str = "the age") -> float | None:
    """An age in seconds; None: for ever. ``ConfigError`` if it is none, or shorter than a minute."""
    if age is None or age == "forever":
        return None
    if isinstance(age, str):
        match = _AGE.fullmatch(age.strip())
        unit = match[2].lower() if match else ""
        factor = _UNITS.get(unit) or _UNITS.get(unit.removesuffix("s"))
        if match is None or factor is None:
            raise ConfigError(f"{where} is {age!r}; {_RULE}")
        seconds = float(match[1]) * factor
    elif isinstance(age, timedelta | int | float) and not isinstance(age, bool):
        seconds = seconds_of(age)
    else:
        raise ConfigError(f"{where} is {age!r}; {_RULE}")
    if not RETENTION_AGE_MIN_SECONDS <= seconds < 1e10:
        raise ConfigError(f'{where} is {age!r}; it must be at least "1 min"; {_RULE}')
    return seconds


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a finished workflow is kept after its end: by its name, else by its queue, else ``default``.

    Ages are ``"30 days"``, ``timedelta`` or seconds, at least a minute; ``"forever"`` or None: it is never removed.
    ``workflows``: ages by name (``app/function``), ``queues``: by queue. ``export``: a directory to which everything
    is written, as JSON Lines, before it is removed. Raises ``ConfigError``.
    """

    default: Age = None
    queues: Mapping[str, Age] = field(default_factory=dict)
    workflows: Mapping[str, Age] = field(default_factory=dict)
    export: str | Path | None = None

    def __post_init__(self) -> None:
        if len(self.distinct_ages()) > RETENTION_AGES_MAX:
            raise ConfigError(f"there are more than {RETENTION_AGES_MAX} different ages; use fewer")

    @property
    def default_seconds(self) -> float | None:
        """``default`` in seconds; None: for ever."""
        return parse_age(self.default, "default")

    def queue_seconds(self) -> dict[str, float | None]:
        """The ages of queues, in seconds."""
        return {name: parse_age(age, f"the age of queue {name!r}") for name, age in self.queues.items()}

    def workflow_seconds(self) -> dict[str, float | None]:
        """The ages of workflows, in seconds."""
        return {name: parse_age(age, f"the age of workflow {name!r}") for name, age in self.workflows.items()}

    def distinct_ages(self) -> list[float]:
        """Every age that is not for ever, the longest first; empty: nothing is ever removed."""
        ages = {self.default_seconds, *self.queue_seconds().values(), *self.workflow_seconds().values()}
        return sorted((age for age in ages if age is not None), reverse=True)
