"""What moving a slot, or splitting it, costs those who use it: ``python -m bench.move [--rows 100000] [--split]``.

Two embedded shards. The slot that moves (or is split) holds so many unfinished workflows; a client starts workflows
there, one after another, and four others do so in the other slots. Printed: how long the slot took no writes as the
coordinator saw it, and the longest start there as the client saw it (in a quiet time, and during the move); and how
many starts a second the other slots made before the move and during it. The coordinator is a process of its own:
``sharded-wf shards move``, or ``split``."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from sharded_wf import App
from sharded_wf.client import Client
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.config import ClusterConfig
from sharded_wf.dev import EmbeddedServer

app = App("bench-move")
SLOTS = 8
QUIET_SECONDS = 5.0
WRITERS = 4
CHUNK = 10_000
TAGS = 8
"""Hash tags of the slot's workflows: some go to one half of it, some to the other."""


@app.workflow
async def nothing(number: int) -> int:
    return number


@dataclass
class Seen:
    """What the clients saw in one period."""

    here_ms: list[float] = field(default_factory=list)
    elsewhere: int = 0
    begun: float = field(default_factory=time.monotonic)

    def line(self, name: str) -> str:
        seconds = time.monotonic() - self.begun
        return (
            f"  {name:<7} {seconds:6.1f} s   start in the slot: median {statistics.median(self.here_ms):6.1f} ms, "
            f"longest {max(self.here_ms):7.1f} ms   other slots: {self.elsewhere / seconds:7.0f} starts/s"
        )


def tag_in(client: Client, slot: int, *, inside: bool, number: int) -> str:
    """A hash tag whose workflows lie in the slot, or not."""
    while (client.locate(f"{{t{number}}}/0")[0] == slot) is not inside:
        number += 1
    return f"{{t{number}}}"


async def measure(path: Path, rows: int, slot: int, command: list[str]) -> None:
    seen = Seen()
    async with app.connect(path) as client:
        tags: list[str] = []
        while len(tags) < TAGS:
            tags.append(tag_in(client, slot, inside=True, number=int(tags[-1][2:-1]) + 1 if tags else 0))
        begun = time.monotonic()
        for at in range(0, rows, CHUNK):
            await client.start_many(
                (f"{tags[n % TAGS]}/{n}", nothing.bind(n)) for n in range(at, min(at + CHUNK, rows))
            )
        print(f"{rows:,} unfinished workflows in slot {slot} after {time.monotonic() - begun:.0f} s")
        stop = asyncio.Event()

        async def write_here() -> None:
            number = 0
            while not stop.is_set():
                began = time.monotonic()
                await client.start(nothing.bind(number), id=f"{tags[number % TAGS]}/here-{number}")
                seen.here_ms.append((time.monotonic() - began) * 1000)
                number += 1

        async def write_elsewhere(writer: int) -> None:
            other = tag_in(client, slot, inside=False, number=1000 * writer)
            number = 0
            while not stop.is_set():
                await client.start(nothing.bind(number), id=f"{other}/{writer}-{number}")
                seen.elsewhere += 1
                number += 1

        writers = [
            asyncio.create_task(write_here()),
            *(asyncio.create_task(write_elsewhere(n)) for n in range(WRITERS)),
        ]
        await asyncio.sleep(1.0)
        seen = Seen()
        await asyncio.sleep(QUIET_SECONDS)
        print(seen.line("before"))
        seen = Seen()
        mover = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sharded_wf", "shards", *command, str(slot), "--yes", "-c", str(path),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        printed = (await mover.communicate())[0].decode()
        print(seen.line("during"))
        stop.set()
        await asyncio.gather(*writers)  # an error that a writer saw is raised here
        pause = re.search(r"no writes for ([^\n]*)", printed)
        print(f"  no writes in the slot for {pause[1] if pause else '?'}, as the coordinator saw it; errors seen: 0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="unfinished workflows in the slot")
    parser.add_argument("--split", action="store_true", help="split the slot, instead of moving it")
    parser.add_argument("--postgres", default="18", help="version of both shards")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, PostgreSQL {options.postgres}, load {os.getloadavg()[0]:.1f} before it began")
    with (
        EmbeddedServer.create(version=options.postgres) as one,
        EmbeddedServer.create(version=options.postgres) as two,
        tempfile.TemporaryDirectory() as directory,
    ):
        path = Path(directory) / "shards.toml"
        shards = "".join(
            f'[[shard]]\nname = "pg{number}"\ndsn = "{server.create_database("wf")}"\n'
            for number, server in enumerate((one, two), 1)
        )
        path.write_text(f'[cluster]\nname = "bench"\n{shards}')
        init_cluster(ClusterConfig.from_file(path), SLOTS)
        asyncio.run(measure(path, options.rows, 0, ["split"] if options.split else ["move", "--to", "pg2"]))


if __name__ == "__main__":
    main()
