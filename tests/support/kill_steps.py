"""The steps of ``kill_flows``. What fails does so until its key is *mended*: a row in the ledger's database."""

from __future__ import annotations

import asyncio
import os
import time

import psycopg

from sharded_wf import Retry, current, heartbeat
from tests.support.flows import LEDGER_VARIABLE, app, ledger

MEND_TABLE = "create table if not exists mend (key text primary key)"
NEVER = 3600.0


class Refused(Exception):
    """What is not mended."""


async def mended(key: str) -> bool:
    async with await psycopg.AsyncConnection.connect(os.environ[LEDGER_VARIABLE], autocommit=True) as conn:
        found = await conn.execute("select from mend where key = %s", (key,))
        return await found.fetchone() is not None


@app.step
async def is_mended(key: str) -> bool:
    return await mended(key)


@app.step
async def mendable_note(number: int, key: str) -> str:
    token = await ledger().write(number)
    if not await mended(key):
        raise Refused(key)
    return token


@app.step
async def hang() -> None:
    await asyncio.sleep(NEVER)


@app.step(heartbeat=0.5, retry=Retry(attempts=2, first=0.05))
async def falls_silent() -> list[int]:
    """Says how often it began, and falls silent the first time."""
    begun = (current().last_heartbeat or 0) + 1
    heartbeat(begun)
    if current().attempt == 1:
        await asyncio.sleep(NEVER)
    return [current().attempt, begun]


@app.step(heartbeat=0.5, retry=Retry(attempts=2, first=0.05))
def falls_silent_blocking() -> list[int]:
    begun = (current().last_heartbeat or 0) + 1
    heartbeat(begun)
    if current().attempt == 1:
        time.sleep(1.5)
    return [current().attempt, begun]
