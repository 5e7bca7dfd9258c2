"""Workflows whose code changes while they run, and ones that continue as new: the same code for async and ``def``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from sharded_wf import App, Bound, continue_as_new, current, patched, receive, sleep_blocking

ran: list[str] = []


def before(asynchronous: bool) -> tuple[App, Bound[Any]]:
    """The code as it was first: two charges with a pause between."""
    app = App("evolving")

    @app.step
    async def charge(what: str) -> str:
        ran.append(what)
        return what

    if asynchronous:

        @app.workflow(name="flow")
        async def flow() -> list[str]:
            first = await charge("old-1")
            await asyncio.sleep(60)
            return [first, await charge("old-2")]

        return app, flow.bind()

    @app.workflow(name="flow")
    def flow_blocking() -> list[str]:
        first = charge.blocking("old-1")
        sleep_blocking(60)
        return [first, charge.blocking("old-2")]

    return app, flow_blocking.bind()


def after(asynchronous: bool, patch: Callable[[str], object] = patched) -> tuple[App, Bound[Any]]:
    """The code after two changes: other charges before and after the pause."""
    app = App("evolving")

    @app.step
    async def charge(what: str) -> str:
        ran.append(what)
        return what

    if asynchronous:

        @app.workflow(name="flow")
        async def flow() -> list[str]:
            first = await charge("new-1" if patch("first") else "old-1")
            await asyncio.sleep(60)
            return [first, await charge("new-2" if patch("second") else "old-2")]

        return app, flow.bind()

    @app.workflow(name="flow")
    def flow_blocking() -> list[str]:
        first = charge.blocking("new-1" if patch("first") else "old-1")
        sleep_blocking(60)
        return [first, charge.blocking("new-2" if patch("second") else "old-2")]

    return app, flow_blocking.bind()


counter = App("counter")
keys: list[str] = []


@counter.step
async def add(total: int) -> int:
    ran.append(f"add {total}")
    return total + 1


@counter.step
async def same() -> str:
    keys.append(current().idempotency_key)
    return current().idempotency_key


@counter.workflow
async def double(number: int) -> int:
    return 2 * number


@counter.workflow
async def count(total: int, until: int) -> list[int]:
    """Two steps, a message and a child in each run."""
    await same()
    total = await add(total)
    if total < until:
        assert await double(total) == 2 * total
        await receive("go", int)
        continue_as_new(count.bind(total, until))
    return [total, current().run]


@counter.workflow
def count_blocking(total: int, until: int) -> list[int]:
    same.blocking()
    total = add.blocking(total)
    if total < until:
        assert double.blocking(total) == 2 * total
        receive.blocking("go", int)
        continue_as_new(count_blocking.bind(total, until))
    return [total, current().run]


@counter.workflow
async def swallow(limit: int) -> int:
    """Its ``except`` and ``finally`` are in the way; it continues from within a task group."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_go_on(limit))
    except Exception:  # noqa: BLE001 - what is tested: it lets it pass
        return -1
    finally:
        await add(limit)
    return limit


async def _go_on(limit: int) -> None:
    if limit:
        continue_as_new(swallow.bind(limit - 1))


@counter.workflow
async def undelivered() -> list[int]:
    """Run 1 ends while a message is being recorded for a branch of it; the next run must get it."""
    if current().run == 1:
        waiting = asyncio.ensure_future(receive("go", int))
        await receive("end", int)
        waiting.cancel()
        continue_as_new(undelivered.bind())
    return [await receive("go", int), await receive("go", int)]


@counter.workflow
async def busy(requests: int) -> int:
    for number in range(requests):
        await add(number)
    return current().history_length


Flow = Callable[..., Coroutine[Any, Any, Any]]
