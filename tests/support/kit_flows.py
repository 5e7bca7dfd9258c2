"""Workflows for the tests of the testing kit."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from sharded_wf import App, Retry, receive, sleep_blocking

app = App("kit")
ran: list[str] = []


@app.step(retry=Retry(attempts=3, first=3600, factor=1))
async def fetch(url: str) -> str:
    ran.append(f"fetch {url}")
    raise ConnectionError(url)


@app.step
async def note(text: str) -> str:
    ran.append(text)
    return text


@app.step
def note_in_thread(text: str) -> str:
    ran.append(text)
    return text


@app.workflow
async def monthly(days: int) -> list[str]:
    """A note a day."""
    return [await _after_a_day(day) for day in range(days)]


async def _after_a_day(day: int) -> str:
    await asyncio.sleep(86_400)
    return await note(f"day {day}")


@app.workflow
def monthly_blocking(days: int) -> list[str]:
    notes = []
    for day in range(days):
        sleep_blocking(86_400)
        notes.append(note_in_thread(f"day {day}"))
    return notes


@app.workflow
async def download(url: str) -> str:
    return await fetch(url)


@app.workflow
async def approval() -> str:
    try:
        return await receive("answer", str, timeout=timedelta(days=3))
    except TimeoutError:
        return "nobody answered"


@app.workflow
async def three() -> list[str]:
    return [await note("a"), await note_in_thread.in_thread("b"), await note("c")]


@app.workflow
def three_blocking() -> list[str]:
    return [note.blocking("a"), note_in_thread("b"), note.blocking("c")]


START = datetime(2026, 3, 1, tzinfo=UTC)
