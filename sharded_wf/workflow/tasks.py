"""The tasks that workflow code makes."""

from __future__ import annotations

from asyncio import Task
from typing import Any


class WorkflowTask(Task[Any]):
    """A task whose place in a set is the same on replay: code goes over the sets that ``asyncio.wait`` returns, and
    over its own, and what it does then is asked for in that order."""

    __slots__ = ("number",)
    number: int

    def __hash__(self) -> int:
        return self.number
