"""A client in a process of its own: it starts workflows of many kinds until it is told to stop, waits for all of them,
and says which they are. Run by ``RUN``; see ``finish``."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections import deque

from sharded_wf.config import find_config
from tests.support.flows import app, chain, outbox, parent, patient_parent, sleeper
from tests.support.processes import WorkerProcess

RUN = "from tests.support.load import main; main()"
STARTED = "started"
FINISHED = "finished: "
AHEAD_BATCHES = 1
RESULT_SECONDS = 60.0


def finish(load: WorkerProcess) -> list[str]:
    """Tell it to stop; the IDs of all that it started, every one with its result. Fails if it met any error."""
    load.say("stop")
    line = load.wait_line(FINISHED, RESULT_SECONDS + 5)
    assert load.wait() == 0, load.output()
    return list(json.loads(line.removeprefix(FINISHED)))


async def run(path: str, prefix: str) -> list[str]:
    stop = threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    ids: list[str] = []
    async with app.connect(find_config(path)) as client:
        last = deque[asyncio.Task[int]]()
        while not stop.is_set():
            name = f"{prefix}{len(ids)}"
            handles = await client.start_many((f"{name}c{n}", chain.bind(2)) for n in range(2))
            handles.append(await client.start(parent.bind(2, 1), id=f"{name}p"))
            ids += [handle.id for handle in handles]
            ids.append((await client.start(patient_parent.bind(1, 0.5), id=f"{name}pp")).id)
            ids.append((await client.start(sleeper.bind(0.7), id=f"{name}s")).id)
            ids.append((await client.start(outbox.bind([], 1), id=f"{name}o")).id)
            print(STARTED, len(ids))
            last.append(asyncio.create_task(handles[-1].result(RESULT_SECONDS)))
            if len(last) > AHEAD_BATCHES:
                await last.popleft()
        await asyncio.gather(*(client.get_handle(id_).result(RESULT_SECONDS) for id_ in ids), *last)
    return ids


def main() -> None:
    print(FINISHED + json.dumps(asyncio.run(run(*sys.argv[1:]))))
