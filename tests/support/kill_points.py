"""Kills an executor in the middle of a flush: at the n-th, for every n that is asked for, side by side.

Each point has a worker of its own, behind a proxy of its own that holds the n-th flush's COMMIT, on its way there or
its answer on the way back. Each serves a queue of its own. When all are held, all are killed, and one heir finishes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from tests.support.cluster import TestCluster
from tests.support.processes import wait_until
from tests.support.proxy import COMMIT, Moment, Proxy

FLUSH = r"insert into wf_control\.flush"
KillPoint = tuple[int, Moment]
"""Which flush, from 0, and on which side of its COMMIT."""


def every_point(flushes: int) -> list[KillPoint]:
    """All points of a life that takes so many flushes."""
    moments: tuple[Moment, Moment] = ("before", "after")
    return [(number, when) for number in range(flushes) for when in moments]


def kill_at(
    cluster: TestCluster,
    points: Sequence[KillPoint],
    begin: Callable[[str], None],
    *options: str,
    app: str = "tests.support.flows:app",
) -> None:
    """For each point a worker that serves the queue ``q<position>``; ``begin(queue)`` is to put something into it, when
    the worker is there. Returns when all of them are killed, each at its point."""
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(Proxy(cluster.direct[0])) for _ in points]
        workers = [
            stack.enter_context(cluster.through(proxy.dsn).worker("--queue", f"q{at}", *options, app=app))
            for at, proxy in enumerate(proxies)
        ]
        wait_until(lambda: len(cluster.leases()) >= len(points), "the leases of the victims")
        rules = [
            proxy.hold(COMMIT, when=when, within=FLUSH, skip=number)
            for proxy, (number, when) in zip(proxies, points, strict=True)
        ]
        for at in range(len(points)):
            begin(f"q{at}")
        for rule in rules:
            rule.wait()
        for worker in workers:
            worker.kill()
        for proxy in proxies:
            proxy.release()
