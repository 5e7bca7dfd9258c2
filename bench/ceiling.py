#!/usr/bin/env python3
# pyright: reportCallIssue=false, reportArgumentType=false
"""The bare loop: what Postgres and Python can do at most on this machine, with no engine at all.

It makes the durable writes that one workflow owes (start, claim with SKIP LOCKED, one checkpoint a
step, outcome), batched as well as they can be, and nothing else: no replay, no fence, no retries, no
errors. Its rate is the ceiling that the engine is measured against, side by side, in one run.

    python -m bench.ceiling DSN [--seconds 20] [--steps 0] [--slots 16] [--executors 1] [--postmaster PID]

DSN is a scratch database: the schemas ceiling_0000.. are dropped and created. Needs psycopg[binary]
and msgspec. Prints one JSON object; workflows_per_second counts workflows started AND finished,
durably (fsync and synchronous_commit as the server has them), within the time. CPU time is that of our processes,
and with --postmaster, the process ID of a server on this machine, that of its processes too (Linux).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import multiprocessing.sharedctypes
import os
import time
import uuid
from pathlib import Path

import msgspec
import psycopg

BATCH = 500  # workflows per start, per claim
IN_FLIGHT = 2000  # workflows an executor holds at once
BACKLOG = 30_000  # how far the starter may run ahead
VACUUM_SECONDS = 2.0  # the queue table is all churn: see design.md

TABLES = """
create table {s}.workflow (
    id text collate "C" primary key, name text not null, queue text not null,
    status smallint not null default 0, priority int not null default 0,
    input json, output json, error json, executor text, attempts smallint not null default 0,
    parent text, created_at timestamptz not null default now(),
    started_at timestamptz, completed_at timestamptz) with (fillfactor = 50);
create table {s}.ready (
    queue text not null, priority int not null, id text collate "C" not null,
    primary key (queue, priority, id)) with (autovacuum_enabled = off);
create table {s}.step (
    workflow_id text collate "C", seq int, name text not null, output json, error json,
    started_at timestamptz not null, completed_at timestamptz not null default now(),
    primary key (workflow_id, seq));
"""

START = """
with w as (
    insert into {s}.workflow (id, name, queue, priority, input)
    select id, n, q, p, i::json
    from unnest(%b::text[], %b::text[], %b::text[], %b::int[], %b::text[]) u(id, n, q, p, i)
    on conflict do nothing returning queue, priority, id)
insert into {s}.ready select * from w
"""

CLAIM = """
with d as (
    delete from {s}.ready where ctid = any(array(
        select ctid from {s}.ready where queue = 'default'
        order by priority, id limit %b for update skip locked)) returning id)
update {s}.workflow w set status = 1, executor = %b, attempts = attempts + 1, started_at = now()
from d where w.id = d.id returning w.id, w.name, w.input::text
"""

STEPS = """
insert into {s}.step (workflow_id, seq, name, output, started_at)
select i, s, n, o::json, to_timestamp(t)
from unnest(%b::text[], %b::int[], %b::text[], %b::text[], %b::float8[]) u(i, s, n, o, t)
"""

FINISH = """
update {s}.workflow w set status = 2, output = d.output::json, completed_at = now()
from unnest(%b::text[], %b::text[]) d(id, output)
where w.id = d.id and w.executor = %b and w.status = 1
"""


Counter = multiprocessing.sharedctypes.Synchronized
Save = tuple[int, str, int, str, str, float, "asyncio.Future[None]"]  # a step to save, and who waits for it
End = tuple[int, str, str]


def schema(slot: int) -> str:
    return f"ceiling_{slot:04d}"


def new_id() -> str:
    """A time-ordered id (UUIDv7), so that index inserts land on the right-most page."""
    bits = (int(time.time() * 1000) << 80) | int.from_bytes(os.urandom(10), "big")
    bits = bits & ~(0xF << 76) | 7 << 76
    return str(uuid.UUID(int=bits & ~(0x3 << 62) | 2 << 62))


def create(dsn: str, slots: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("set client_min_messages = warning")
        for slot in range(slots):
            conn.execute(f"drop schema if exists {schema(slot)} cascade; create schema {schema(slot)}")
            conn.execute(TABLES.format(s=schema(slot)))


def starter(dsn: str, slots: int, done: Counter[int]) -> None:
    conn = psycopg.connect(dsn, autocommit=True)
    payload = json.dumps({"args": [1, "hello world"], "kwargs": {}})
    started = slot = 0
    while True:
        if started - done.value > BACKLOG:
            time.sleep(0.005)
            continue
        slot = (slot + 1) % slots
        ids = [new_id() for _ in range(BATCH)]
        conn.execute(
            START.format(s=schema(slot)),
            (ids, ["noop"] * BATCH, ["default"] * BATCH, [0] * BATCH, [payload] * BATCH),
            prepare=True,
        )
        started += BATCH


def vacuum(dsn: str, slots: int) -> None:
    conn = psycopg.connect(dsn, autocommit=True)
    while True:
        time.sleep(VACUUM_SECONDS)
        for slot in range(slots):
            conn.execute(f"vacuum (skip_locked, truncate off) {schema(slot)}.ready")


def executor(name: str, offset: int, dsn: str, slots: int, steps: int, done: Counter[int]) -> None:
    encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode

    async def main() -> None:
        loop = asyncio.get_running_loop()
        pending_steps: list[Save] = []
        pending_ends: list[End] = []
        wake, room = asyncio.Event(), asyncio.Event()
        room.set()
        in_flight = 0

        async def run(workflow_id: str, slot: int, payload: str) -> None:
            decode(payload)
            for seq in range(steps):
                saved: asyncio.Future[None] = loop.create_future()
                pending_steps.append((slot, workflow_id, seq, "add", encode({"n": seq}).decode(), time.time(), saved))
                wake.set()
                await saved  # a step's result is durable before the next step begins
            pending_ends.append((slot, workflow_id, encode({"ok": True}).decode()))
            wake.set()

        async def commit() -> None:
            nonlocal pending_steps, pending_ends, in_flight
            conn = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
            while True:
                await wake.wait()
                wake.clear()
                saves, pending_steps = pending_steps, []
                ends, pending_ends = pending_ends, []
                if not saves and not ends:
                    continue
                by_slot: dict[int, tuple[list[Save], list[End]]] = {}
                for save in saves:
                    by_slot.setdefault(save[0], ([], []))[0].append(save)
                for end in ends:
                    by_slot.setdefault(end[0], ([], []))[1].append(end)
                async with conn.pipeline(), conn.transaction():  # one commit for every slot's writes
                    for slot, (rows, finals) in by_slot.items():
                        if rows:
                            _, ids, seqs, names, outputs, times, _ = (list(c) for c in zip(*rows, strict=True))
                            await conn.execute(
                                STEPS.format(s=schema(slot)), (ids, seqs, names, outputs, times), prepare=True
                            )
                        if finals:
                            _, ids, outputs = (list(c) for c in zip(*finals, strict=True))
                            await conn.execute(FINISH.format(s=schema(slot)), (ids, outputs, name), prepare=True)
                for save in saves:
                    save[-1].set_result(None)
                in_flight -= len(ends)
                with done.get_lock():
                    done.value += len(ends)
                if in_flight <= IN_FLIGHT - BATCH:
                    room.set()

        async def claim() -> None:
            nonlocal in_flight
            conn = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
            slot, empty = offset, 0
            while True:
                await room.wait()
                room.clear()
                slot = (slot + 1) % slots
                cursor = await conn.execute(CLAIM.format(s=schema(slot)), (BATCH, name), prepare=True, binary=True)
                rows = await cursor.fetchall()
                in_flight += len(rows)
                if in_flight <= IN_FLIGHT - BATCH:
                    room.set()
                empty = 0 if rows else empty + 1
                if empty > slots:
                    await asyncio.sleep(0.005)
                for workflow_id, _, payload in rows:
                    loop.create_task(run(workflow_id, slot, payload))  # noqa: RUF006 - the rows to save hold it

        await asyncio.gather(commit(), claim())

    asyncio.run(main())


def cpu_seconds(pid: int, *, ended_children: bool = False) -> float:
    """CPU time that a process has used, with that of its children that have ended, if wished; 0 once it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything; the state is fields[0]
    return sum(map(int, fields[11 : 15 if ended_children else 13])) / os.sysconf("SC_CLK_TCK")


def server_cpu_seconds(postmaster: int) -> float:
    """CPU time of a server's processes, those included that have ended."""
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return cpu_seconds(postmaster, ended_children=True) + sum(cpu_seconds(int(pid)) for pid in children)


def main() -> None:
    parser = argparse.ArgumentParser(description="The bare loop.")
    parser.add_argument("dsn")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--executors", type=int, default=1)
    parser.add_argument("--postmaster", type=int)
    options = parser.parse_args()

    create(options.dsn, options.slots)
    done = mp.Value("q", 0)
    vacuuming = mp.Process(target=vacuum, args=(options.dsn, options.slots), daemon=True)
    starting = mp.Process(target=starter, args=(options.dsn, options.slots, done), daemon=True)
    executing = [
        mp.Process(
            target=executor,
            daemon=True,
            args=(f"e{i}", i * options.slots // options.executors, options.dsn, options.slots, options.steps, done),
        )
        for i in range(options.executors)
    ]
    processes = [vacuuming, starting, *executing]
    for process in processes:
        process.start()

    def used() -> dict[str, float | None]:
        return {
            "postgres": None if options.postmaster is None else server_cpu_seconds(options.postmaster),
            "executor": sum(cpu_seconds(process.pid or 0) for process in executing),
            "client": cpu_seconds(starting.pid or 0),
        }

    time.sleep(2)  # let every process connect and fill its batches
    first, before, begun = done.value, used(), time.perf_counter()
    time.sleep(options.seconds)
    finished, after, elapsed = done.value - first, used(), time.perf_counter() - begun
    for process in processes:
        process.terminate()
    print(
        json.dumps(
            {
                "target": "ceiling",
                "steps": options.steps,
                "slots": options.slots,
                "executors": options.executors,
                "seconds": round(elapsed, 2),
                "workflows": finished,
                "workflows_per_second": round(finished / elapsed, 1),
                "cpu_us_per_workflow": {
                    side: None if cpu is None else round((cpu - (before[side] or 0.0)) * 1e6 / max(1, finished), 1)
                    for side, cpu in after.items()
                },
            }
        )
    )


if __name__ == "__main__":
    main()
