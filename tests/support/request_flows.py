"""Workflows to be cancelled, terminated and paused."""

from __future__ import annotations

import asyncio

from sharded_wf import current, receive, sleep_blocking
from tests.support.flows import app, gated_note, note, slow_note

__all__ = ["app"]


@app.step
def sync_say(number: int) -> int:
    return number


@app.workflow
async def tidy(cleanup_seconds: float) -> None:
    """Waits for ever; its clean-up is a step, which takes a while, and another."""
    try:
        await receive("never")
    finally:
        await slow_note(100, cleanup_seconds)
        await note(101)


@app.workflow
async def tidy_parent() -> None:
    try:
        await note(0)
        await asyncio.gather(tidy(0.0), tidy(0.0))
    finally:
        await note(1)


@app.workflow
async def counted(count: int) -> list[str]:
    """A message, a step, a message, a step, …"""
    found = []
    for number in range(count):
        found.append(await receive("mail", str))
        await note(number)
    return found


@app.workflow
async def gated_then(after: int) -> int:
    await gated_note(0)
    for number in range(1, after + 1):
        await note(number)
    return after


@app.workflow
def sync_tidy() -> str:
    try:
        sleep_blocking(3600)
    except asyncio.CancelledError:
        sync_say(7)
        raise
    return current().workflow_id


@app.workflow
def sync_pausable() -> int:
    found = receive.blocking("mail", int)
    return sync_say(found)
