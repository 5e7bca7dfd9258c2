"""Which of its documented settings is a peer fastest with?

Run it on a quiet machine, and put the answer into its module:

python -m bench.peers.variants [--seconds 8] [--rounds 2] [--only NAME ...]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from sharded_wf.dev.embedded import EmbeddedServer

from ..compare import SERVER_SETTINGS, compare
from .contender import Contender
from .dbos import DBOS_DIRECT, DBOS_QUEUE
from .pgqueuer import PGQUEUER
from .procrastinate import PROCRASTINATE


def variants() -> tuple[Contender, ...]:
    """Everything that is tried, each under a name of its own."""
    found: list[Contender] = []
    for asynchronous, concurrency in ((False, 10), (False, 20), (False, 50), (True, 20), (True, 100)):
        name = f"DBOS {'async' if asynchronous else 'sync'} {concurrency}"
        found.append(replace(DBOS_DIRECT, name=name, asynchronous=asynchronous, concurrency=concurrency))
    for asynchronous, concurrency in ((False, 20), (False, 100), (False, 300), (True, 100), (True, 500)):
        name = f"DBOS queued {'async' if asynchronous else 'sync'} {concurrency}"
        found.append(replace(DBOS_QUEUE, name=name, asynchronous=asynchronous, worker_concurrency=concurrency))
    for managers, batch in ((1, 10), (1, 100), (1, 1000), (1, 4000), (5, 200)):
        found.append(replace(PGQUEUER, name=f"PgQueuer {managers}x{batch}", managers=managers, dequeue_batch=batch))
    for concurrency in (4, 10, 30, 80):
        found.append(replace(PROCRASTINATE, name=f"procrastinate {concurrency}", concurrency=concurrency))
    return tuple(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="Which of its documented settings is a peer fastest with?")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[])
    options = parser.parse_args()
    with EmbeddedServer.create(settings=SERVER_SETTINGS) as server:
        dsn = server.dsn("postgres")
        compare(
            dsn, seconds=options.seconds, rounds=options.rounds, steps=(0,), only=options.only, contenders=variants()
        )


if __name__ == "__main__":
    main()
