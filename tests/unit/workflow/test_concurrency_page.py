"""The program on ``docs/concurrency.md``: it runs, it survives a crash after every entry, and it replays."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from sharded_wf.model.history import EMPTY_HISTORY, History
from tests.unit.workflow.memory_host import MemoryHost, run_virtual

PAGE = Path(__file__).resolve().parents[3] / "docs" / "concurrency.md"
module: dict[str, Any] = {"__name__": "news"}
exec(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0], module)

EXPECTED: dict[str, Any] = {
    "all_of_them": ["news from a", "news from b"],
    "first_of_them": "news from quick",
    "as_they_come": ["news from b", "news from c", "news from a"],
    "all_or_nothing": "one was down; the other was cancelled",
    "three_workers": [f"news from {source}" for source in "abcdefg"],
}


def life(name: str, history: History, crash_after: int | None) -> tuple[Any, History]:
    """One life of the workflow: its result, or ``None`` if the host died first; and what is durable."""

    async def main() -> tuple[Any, History]:
        host = MemoryHost(module["app"], crash_after=crash_after)
        bound = module[name].bind()
        host.begin(bound, history=history)
        ended, died = asyncio.create_task(host.outcome()), asyncio.create_task(host.crashed.wait())
        await asyncio.wait([ended, died], return_when=asyncio.FIRST_COMPLETED)
        died.cancel()
        result = await host.result(bound) if ended.done() else None
        ended.cancel()
        host.close()
        return result, host.stored["w"].history()

    return run_virtual(main())


@pytest.mark.parametrize("name", EXPECTED)
def test_the_page_tells_the_truth(name: str) -> None:
    result, history = life(name, EMPTY_HISTORY, None)
    assert result == EXPECTED[name]
    assert life(name, history, None) == (result, history)
    _, history = life(name, EMPTY_HISTORY, 1)
    result = None
    while result is None:
        result, history = life(name, history, 1)
    assert result == EXPECTED[name]
