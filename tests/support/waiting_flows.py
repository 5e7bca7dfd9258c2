"""Workflows that wait for moments, conditions, heartbeats, deadlines and events, for the engine's tests."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from pathlib import Path

from sharded_wf import (
    App,
    Retry,
    continue_as_new,
    current,
    heartbeat,
    receive,
    set_event,
    sleep_until,
    wait_event,
    wait_until,
)

app = App("waits")
DIRECTORY = "SHARDED_WF_TEST_DIRECTORY"
"""Where the workflows look for files, and leave some."""


def place(name: str) -> Path:
    return Path(os.environ[DIRECTORY]) / name


@app.step
async def file_is_there(name: str) -> str | None:
    with place("looks").open("a") as looks:
        looks.write(f"{os.getpid()}\n")
    return place(name).read_text() if place(name).exists() else None


@app.workflow
async def sensor(name: str, every: float) -> str | None:
    return await wait_until(file_is_there, name, every=every)


@app.step(heartbeat=30, retry=Retry(attempts=2))
async def long_copy(total: int) -> list[int]:
    """Beats until it has beaten so often; waits for good at half of it, in its first life."""
    first = done = current().last_heartbeat or 0
    while done < total:
        done += 1
        heartbeat(done)
        place(f"done-{done}").touch()
        await asyncio.sleep(1.2)
        if first == 0 and done * 2 >= total:
            await asyncio.sleep(3600)
    return [first, done]


@app.workflow
async def copying(total: int) -> list[int]:
    return await long_copy(total)


@app.workflow
async def sleeper(seconds: float) -> float:
    moment = current().now() + timedelta(seconds=seconds)
    await sleep_until(moment)
    return (current().now() - moment).total_seconds()


@app.workflow
async def setter(values: list[int], gated: bool) -> int:
    """Sets its event to one value after the other, each after a message if it is gated."""
    for value in values:
        if gated:
            await receive("go")
        await set_event("progress", {"value": value})
    return len(values)


@app.workflow
async def watcher(target: str) -> int:
    found = await wait_event(target, "progress", dict[str, int])
    return found["value"]


@app.workflow
def sync_watcher(target: str) -> int:
    set_event.blocking("watching", target)
    return wait_event.blocking(target, "progress", dict[str, int])["value"]


@app.workflow(timeout=3)
async def limited(child_too: bool) -> str:
    if child_too:
        return await unlimited()
    await asyncio.sleep(3600)
    return "never"


@app.workflow
async def unlimited() -> str:
    try:
        await asyncio.sleep(3600)
    finally:
        await file_is_there("cleaned up")
    return "never"


@app.workflow(run_timeout=0.5)
async def limited_run() -> str:
    await asyncio.sleep(3600)
    return "never"


@app.workflow
def sync_sensor(name: str, every: float) -> str | None:
    return wait_until.blocking(sync_file_is_there, name, every=every)


@app.step
def sync_file_is_there(name: str) -> str | None:
    return place(name).read_text() if place(name).exists() else None


# --- repair, long lives, moves ----------------------------------------------------------------------------------------


@app.workflow(timeout=2, run_timeout=1.5)
async def impatient(name: str) -> list[str]:
    """Waits for a file for as long as its time lasts; what it draws by chance before goes through a step."""
    drawn = await echo(current().uuid4().hex)
    try:
        await wait_until(file_is_there, name, every=0.2)
    finally:
        await echo("tidied")
    return [drawn, current().uuid4().hex]


@app.step
async def echo(text: str) -> str:
    return text


@app.workflow(timeout=0.5)
async def untidy() -> None:
    """Its clean-up never ends."""
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(3600)


@app.step(heartbeat=30)
async def beat_once(run: int) -> int | None:
    found: int | None = current().last_heartbeat
    heartbeat(run)
    return found


@app.workflow
async def renewed(runs: int) -> list[int | None]:
    """Sets its event in each of its runs, and beats in each: what a step of the first run reported is forgotten."""
    run = current().run
    await set_event("run", run)
    found = await beat_once(run)
    if run < runs:
        continue_as_new(renewed.bind(runs))
    return [run, found]
