"""What the bodies of steps noted reaches the ledger, whenever the executor ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bench import workloads
from bench.workloads import Notebook


class SlowLedger:
    """A connection whose INSERT takes until it is let go, and is lost if it is cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()
        self.tokens: list[str] = []

    async def execute(self, _query: str, parameters: tuple[Any, ...]) -> None:
        self.begun.set()
        await self.let_go.wait()
        self.tokens += parameters[3]


def test_notes_being_written_when_the_executor_ends_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "NOTES_WRITTEN_EVERY_SECONDS", 0.0)

    async def scenario() -> None:
        ledger: Any = SlowLedger()
        notebook, stopping = Notebook(), asyncio.Event()
        first = notebook.write("w", 0)
        writing = asyncio.create_task(notebook.flush_until(stopping, ledger))
        await ledger.begun.wait()
        second = notebook.write("w", 1)
        stopping.set()
        ledger.let_go.set()
        await writing
        assert ledger.tokens == [first, second]

    asyncio.run(scenario())
