"""The signal that unwinds the code of a run which is no longer wanted."""

from __future__ import annotations


class RunDropped(BaseException):
    """The run was dropped (parked, drained, lease lost); whatever its ``except`` and ``finally`` ask for is refused.

    A ``BaseException``, so that ``except Exception`` in user code can't swallow it.
    """
