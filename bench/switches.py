"""How long a slot takes no writes when it is switched under load: ``python -m bench.switches [--split]``.

Two embedded shards of ``--slots`` slots in all, executors at work on a closed loop of workflows over all of them. The
slots that are switched hold ``--rows`` unfinished workflows each, which nobody here can run. One after another they are
moved to the other shard (or split), by ``sharded-wf shards move`` (or ``split``) as a process of its own; all the while
one client starts workflows in that slot, one after another.

Printed for each switch: how long the slot took no writes, as the coordinator saw it and as that client did (its
longest start, which has the way to the new place in it). And in all: the longest, and the workflows a second that ended
in slots which are never switched, during the switches over before them. Then all that was started has to be there, and
to have ended once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from psycopg import sql

from sharded_wf import App, Client, connect
from sharded_wf.errors import BenchFailed
from sharded_wf.limits import SLOTS_DEFAULT

from .certificate import Expected, certify
from .cluster import Cluster, Shape, open_cluster
from .processes import open_processes
from .workloads import steps

app = App("bench-waits")
SHARDS = 2
QUIET_SECONDS = 10.0
CHUNK = 10_000
TAGS = 8
"""Hash tags of a slot's workflows: some go to one half of it, some to the other."""
ENDED_SECONDS_MAX = 120.0


@app.workflow
async def waits(number: int) -> int:
    """What nobody here runs."""
    return number


@dataclass(frozen=True)
class Switch:
    """One of them. ``pause_ms``: as the coordinator saw it; ``start_ms``: the longest start in the slot."""

    slot: int
    pause_ms: float
    start_ms: float
    began: datetime
    ended: datetime


def tags_in(client: Client, slots: Iterable[int]) -> dict[int, list[str]]:
    """Hash tags that lead to each of these slots."""
    found: dict[int, list[str]] = {slot: [] for slot in slots}
    number = 0
    while any(len(tags) < TAGS for tags in found.values()):
        tag = f"{{t{number}}}"
        tags = found.get(client.locate(f"{tag}/0")[0])
        if tags is not None and len(tags) < TAGS:
            tags.append(tag)
        number += 1
    return found


async def fill(client: Client, tags: list[str], rows: int) -> None:
    for first in range(0, rows, CHUNK):
        await client.start_many(
            (f"{tags[n % TAGS]}/{n}", waits.bind(n)) for n in range(first, min(first + CHUNK, rows))
        )


async def switch(client: Client, slot: int, tags: list[str], command: list[str]) -> Switch:
    began, longest, number = datetime.now(UTC), 0.0, 0
    mover = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sharded_wf", "shards", *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    reading = asyncio.create_task(mover.communicate())
    while not reading.done():
        begun = time.monotonic()
        await client.start(waits.bind(number), id=f"{tags[number % TAGS]}/here-{number}")
        longest = max(longest, time.monotonic() - begun)
        number += 1
    said = (await reading)[0].decode()
    pause = re.search(r"no writes for ([\d.]+) (ms|s)", said)
    if pause is None:
        raise BenchFailed(f"slot {slot} was not switched:\n{said}")
    pause_ms = float(pause[1]) * (1 if pause[2] == "ms" else 1000)
    return Switch(slot, pause_ms, longest * 1000, began, datetime.now(UTC))


def ended_in(cluster: Cluster, slots: Iterable[int], began: datetime, ended: datetime) -> int:
    """How many workflows of the load ended in these slots within a time."""
    total = 0
    for shard in cluster.config.shards:
        with psycopg.connect(shard.dsn, autocommit=True) as conn:
            for slot in slots:
                schema = sql.Identifier(f"wf_{slot:04}")
                with suppress(psycopg.errors.UndefinedTable):  # it lies on the other shard
                    query = sql.SQL("select count(*) from {}.workflow where completed_at >= %s and completed_at < %s")
                    row = conn.execute(query.format(schema), (began, ended)).fetchone()
                    total += 0 if row is None else row[0]
    return total


def unfinished(cluster: Cluster) -> int:
    """Workflows of the load that have not ended."""
    total = 0
    for shard in cluster.config.shards:
        with psycopg.connect(shard.dsn, autocommit=True) as conn:
            for (schema,) in conn.execute(r"select nspname from pg_namespace where nspname ~ '^wf_\d{4,}$'").fetchall():
                query = sql.SQL("select count(*) from {}.workflow where name like 'bench/%' and status < 3")
                row = conn.execute(query.format(sql.Identifier(schema))).fetchone()
                total += 0 if row is None else row[0]
    return total


async def measure(cluster: Cluster, path: Path, options: argparse.Namespace) -> list[Switch]:
    """Make the switches, and print them."""
    made: list[Switch] = []
    async with connect(cluster.config) as client:
        here = [slot for slot in range(options.slots) if client._shards.map.shard_of_slot(slot) == "pg1"]
        slots = here[: options.switches]
        tags = tags_in(client, slots)
        for slot in slots:
            print(f"\rfilling slot {slot} with {options.rows:,} workflows ", end="", flush=True, file=sys.stderr)
            await fill(client, tags[slot], options.rows)
        print(file=sys.stderr)
        with open_processes(cluster.config, cluster.ledger) as processes:
            processes.start_executors(options.executors)
            processes.start_clients(1, "steps", options.steps, backlog=options.backlog)
            await asyncio.sleep(QUIET_SECONDS / 2)
            quiet_began = datetime.now(UTC)
            await asyncio.sleep(QUIET_SECONDS)
            quiet_ended = datetime.now(UTC)
            for slot in slots:
                processes.check()
                print(f"  slot {slot:2}: …", end="\r", flush=True, file=sys.stderr)
                command = ["split", str(slot)] if options.split else ["move", str(slot), "--to", "pg2"]
                made.append(await switch(client, slot, tags[slot], [*command, "--yes", "-c", str(path)]))
                one = made[-1]
                took = (one.ended - one.began).total_seconds()
                print(
                    f"  slot {slot:2}: no writes for {one.pause_ms:5.0f} ms; "
                    f"longest start there {one.start_ms:5.0f} ms; in all {took:.1f} s",
                    flush=True,
                )
            processes.end(processes.clients)
            deadline = time.monotonic() + ENDED_SECONDS_MAX
            while (left := unfinished(cluster)) and time.monotonic() < deadline:  # noqa: ASYNC110 - rows tell
                await asyncio.sleep(0.5)
            processes.end(processes.executors)
            if left:
                raise BenchFailed(f"{left} workflows did not end")
    others = [slot for slot in range(options.slots) if slot not in slots]
    quiet = ended_in(cluster, others, quiet_began, quiet_ended) / QUIET_SECONDS
    seconds = sum((one.ended - one.began).total_seconds() for one in made)
    during = sum(ended_in(cluster, others, one.began, one.ended) for one in made) / seconds
    pauses, starts = [one.pause_ms for one in made], [one.start_ms for one in made]
    print(
        f"{len(made)} {'splits' if options.split else 'moves'} of slots with {options.rows:,} unfinished workflows\n"
        f"  no writes: median {statistics.median(pauses):.0f} ms, longest {max(pauses):.0f} ms\n"
        f"  longest start: median {statistics.median(starts):.0f} ms, longest {max(starts):.0f} ms\n"
        f"  other slots: {during:,.0f} workflows/s, {quiet:,.0f} before: {during / quiet:.2f}"
    )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--switches", type=int, default=10, help="how many slots are switched")
    parser.add_argument("--slots", type=int, default=SLOTS_DEFAULT, help="of the cluster")
    parser.add_argument("--rows", type=int, default=100_000, help="unfinished workflows in each slot that is switched")
    parser.add_argument("--split", action="store_true", help="split the slots, instead of moving them")
    parser.add_argument("--executors", type=int, default=2, help="executor processes")
    parser.add_argument("--steps", type=int, default=1, help="steps of each workflow of the load")
    parser.add_argument("--backlog", type=int, default=3_000, help="workflows that the load's client may be ahead")
    options = parser.parse_args()
    if not 0 < options.switches < options.slots // SHARDS:
        parser.error(f"--switches: 1 to {options.slots // SHARDS - 1}, fewer than the slots of a shard")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before it began, {options.executors} executors")
    shape = Shape(SHARDS, None, options.slots)
    with open_cluster(shape) as cluster, tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "shards.toml"
        shards = "".join(f'[[shard]]\nname = "{one.name}"\ndsn = "{one.dsn}"\n' for one in cluster.config.shards)
        path.write_text(f'[cluster]\nname = "{cluster.config.name}"\n{shards}')
        asyncio.run(measure(cluster, path, options))
        found = certify(cluster.config, cluster.ledger, Expected({steps.name: options.steps}, drained=False))
    for violation in found.violations:
        print(violation)
    print(f"certificate: {found.acknowledged:,} started and ended once" if found.holds else "IT DOES NOT HOLD")
    sys.exit(0 if found.holds else 1)


if __name__ == "__main__":
    main()
