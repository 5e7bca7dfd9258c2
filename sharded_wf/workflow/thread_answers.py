"""Where the thread of a ``def`` workflow waits for results. Touched by that thread alone."""

from __future__ import annotations

from typing import Any

_UNANSWERED: Any = object()


class ThreadAnswer:
    """Where a blocking call waits for its result."""

    __slots__ = ("error", "value")

    def __init__(self) -> None:
        self.value: Any = _UNANSWERED
        self.error: BaseException | None = None

    def done(self) -> bool:
        return self.value is not _UNANSWERED

    def set_result(self, value: Any, /) -> None:
        self.value = value

    def set_exception(self, error: Any, /) -> None:
        self.value = None
        self.error = error

    def get(self) -> Any:
        """What came; raises it if it is an error."""
        if self.error is not None:
            raise self.error
        return self.value


def wake(answer: ThreadAnswer) -> None:
    """A timer has gone off: there is an answer."""
    if not answer.done():
        answer.set_result(None)


def time_out(answer: ThreadAnswer, topic: str) -> None:
    """A timer has gone off before there was a message."""
    if not answer.done():
        answer.set_exception(TimeoutError(f"no message on topic {topic!r} in time"))
