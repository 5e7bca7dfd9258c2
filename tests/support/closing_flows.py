"""Workflows whose children end with them."""

from __future__ import annotations

import asyncio

from sharded_wf import current, receive, start_child
from tests.support.flows import app, sleeper, slow_note
from tests.support.repair_flows import fragile_note

__all__ = ["app"]


@app.workflow
async def keeper() -> str:
    """Waits for a word; cancelled, it cleans up for a while."""
    try:
        return await receive("word", str)
    except asyncio.CancelledError:
        await slow_note(100, 0.4)
        raise


@app.workflow
async def guardian(queue: str) -> str:
    """Two children that end with it, and one that nobody takes up; fails until it is mended."""
    me = current().workflow_id
    for name in ("a", "b", "unserved"):
        await start_child(
            keeper.bind(),
            id=f"{me}/{name}",
            queue="nobody" if name == "unserved" else queue,
            parent_close="cancel",
        )
    await fragile_note(0)
    return await receive("end", str)


@app.workflow
def sync_guardian(queue: str) -> str:
    me = current().workflow_id
    for name in ("a", "b", "unserved"):
        start_child.blocking(
            keeper.bind(),
            id=f"{me}/{name}",
            queue="nobody" if name == "unserved" else queue,
            parent_close="cancel",
        )
    fragile_note.blocking(0)
    return receive.blocking("end", str)


@app.workflow
async def closes_one() -> None:
    await start_child(sleeper.bind(1000.0), id=f"{current().workflow_id}/child", parent_close="cancel")
    await receive("never")


@app.workflow
def sync_closes_one() -> None:
    start_child.blocking(sleeper.bind(1000.0), id=f"{current().workflow_id}/child", parent_close="cancel")
    receive.blocking("never")


@app.workflow
async def waits_for_one() -> int:
    return await sleeper(1000.0)
