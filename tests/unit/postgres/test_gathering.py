"""The pace of group commits: who is alone is served at once; where there is much to do, transactions keep apart."""

from __future__ import annotations

import asyncio
import time

from sharded_wf.clock import SYSTEM_CLOCK
from sharded_wf.limits import GATHER_MIN_ROWS
from sharded_wf.postgres.gathering import Gathering

SECONDS = 0.005


def test_only_who_carried_much_just_now_waits() -> None:
    async def go() -> None:
        gathering = Gathering(SYSTEM_CLOCK, SECONDS)
        assert not await gathering.waited(), "the first one"
        gathering.note(time.monotonic(), GATHER_MIN_ROWS - 1)
        assert not await gathering.waited(), "after one that carried little"
        begun = time.monotonic()
        gathering.note(begun, GATHER_MIN_ROWS)
        assert await gathering.waited()
        assert time.monotonic() - begun >= 0.9 * SECONDS  # timers have milliseconds
        assert not await gathering.waited(), "it has waited"
        gathering.note(time.monotonic() - SECONDS, 10_000)
        assert not await gathering.waited(), "after one that took long"

    asyncio.run(go())
