"""When a failed step is tried again. Pure: chance is passed in, so that tests can fix it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

from sharded_wf.clock import SECOND_US, seconds_of
from sharded_wf.errors import DefinitionError, LimitExceeded, StoredValueMismatch, UnstorableValue
from sharded_wf.limits import RETRY_CAP_SECONDS, TIMER_MAX_SECONDS

NEVER_AGAIN: tuple[type[Exception], ...] = (UnstorableValue, StoredValueMismatch, LimitExceeded)
"""A result that can't be stored now can't be stored next time either."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and how soon, a failed step is tried again.

    ``attempts``: how many in all, at least 1; ``None`` for no bound. Before attempt n + 1 it waits ``first`` *
    ``factor`` ** (n - 1) seconds, at most ``cap`` (``None``: 60 seconds, or ``first`` if that is longer), of which up
    to the share ``jitter`` (0 to 1) is taken off at random, so that what failed together does not come back together.
    Durations are seconds or ``timedelta``. An error of a type in ``never`` is final at once.

    Raises :class:`DefinitionError` for values that make no sense.
    """

    attempts: int | None = 3
    first: timedelta | float = 1.0
    factor: float = 2.0
    cap: timedelta | float | None = None
    jitter: float = 0.2
    never: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if self.attempts is not None and self.attempts < 1:
            raise DefinitionError(f"Retry(attempts={self.attempts!r}): at least 1, or None for no bound")
        for name, duration in (("first", self.first), ("cap", 0 if self.cap is None else self.cap)):
            try:
                fits = seconds_of(duration) >= 0
            except TypeError:
                fits = False
            if not fits:
                raise DefinitionError(f"Retry({name}={duration!r}): a timedelta or seconds, not negative")
        if not self.factor >= 1:
            raise DefinitionError(f"Retry(factor={self.factor!r}): at least 1")
        if not 0 <= self.jitter <= 1:
            raise DefinitionError(f"Retry(jitter={self.jitter!r}): between 0 and 1")
        if not _are_classes(self.never):
            raise DefinitionError(f"Retry(never={self.never!r}): a tuple of exception classes")

    def _cap_seconds(self) -> float:
        return max(RETRY_CAP_SECONDS, seconds_of(self.first)) if self.cap is None else seconds_of(self.cap)

    def allows(self, attempt: int, error: BaseException) -> bool:
        """Whether another attempt may follow attempt number ``attempt`` (1, 2, 3 …), which failed with ``error``."""
        if self.attempts is not None and attempt >= self.attempts:
            return False
        return not isinstance(error, (*self.never, *NEVER_AGAIN))

    def delay_us(self, attempt: int, chance: float | None = None) -> int:
        """Microseconds to wait after attempt number ``attempt``; ``chance`` in [0, 1) stands for the random draw."""
        cap = min(self._cap_seconds(), TIMER_MAX_SECONDS)
        try:
            delay = min(cap, seconds_of(self.first) * self.factor ** (attempt - 1))
        except OverflowError:
            delay = cap
        # Not cryptography: it only spreads load.
        drawn = random.random() if chance is None else chance
        return int(delay * (1.0 - self.jitter * drawn) * SECOND_US)


def _are_classes(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(kind, type) for kind in cast("tuple[object, ...]", value))


ONCE = Retry(attempts=1)
"""What a step does unless asked otherwise."""
