"""The worker process: an executor, and the signals that end it. And the parent of several such processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import subprocess
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from sharded_wf.clock import SYSTEM_CLOCK
from sharded_wf.executor import lifeline
from sharded_wf.executor.executor import Executor
from sharded_wf.executor.health import serve_health
from sharded_wf.limits import GC_THRESHOLDS_OBJECTS, ISOLATED_IDLE_SECONDS, RESTART_FIRST_SECONDS, RESTART_MAX_SECONDS

logger = logging.getLogger("sharded_wf.worker")


async def work(executor: Executor, health: tuple[str, int] | None = None) -> None:
    """Run an executor until SIGTERM or SIGINT, then drain; a second signal ends it at once (its work is taken over). An
    isolated executor also ends when it has nothing to do. ``health``: host and port at which its health is told. Raises
    as ``Executor.start`` and ``serve_health``."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            logger.warning("ending without draining")
            raise SystemExit(1)
        logger.info("draining; once more to end at once")
        stop.set()

    def on_supervisor_gone(descriptor: int) -> None:
        loop.remove_reader(descriptor)
        logger.warning("the supervisor is gone; draining")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    supervisor = lifeline.descriptor()
    if supervisor is not None:
        loop.add_reader(supervisor, on_supervisor_gone, supervisor)
    async with contextlib.AsyncExitStack() as opened:
        await opened.enter_async_context(executor)
        announce(executor)
        if health is not None:
            port = await opened.enter_async_context(serve_health(executor.health, *health))
            logger.info("health is told at http://%s:%d/readyz", health[0], port)
        if executor.isolated:
            await _until_idle(executor, stop)
        else:
            await stop.wait()
    logger.info("ended; workflows finished here: %d, given back: %d", executor.finished, executor.given_back)


def announce(executor: Executor) -> None:
    """Say what runs, and where."""
    app = executor.app
    if not app.workflows:
        logger.warning("app %r has no workflows: is the module imported that defines them?", app.name)
    shards = ", ".join(part.shard.name for part in executor.parts)
    queues = "" if executor.queues is None else f", queues {', '.join(executor.queues)}"
    count = "1 workflow" if len(app.workflows) == 1 else f"{len(app.workflows)} workflows"
    logger.info("runs app %r (%s) on %s%s; Ctrl-C or SIGTERM drains", app.capability, count, shards, queues)


async def _until_idle(executor: Executor, stop: asyncio.Event) -> None:
    last_busy = SYSTEM_CLOCK.monotonic()
    while not stop.is_set() and SYSTEM_CLOCK.monotonic() - last_busy < ISOLATED_IDLE_SECONDS:
        if executor.statistics()["held"]:
            last_busy = SYSTEM_CLOCK.monotonic()
        try:
            async with asyncio.timeout(0.2):
                await stop.wait()
        except TimeoutError:
            pass


def calm_garbage_collector() -> None:
    """Thousands of workflows in memory look to the collector like a leak, and it searches all of them again and again,
    which costs as much as running them. They hold no cycles; so let it look rarely, and never at what was imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS_OBJECTS)


def run(executor: Executor, health: tuple[str, int] | None = None) -> None:
    """``work`` in a process that is all its own."""
    run_fast(work(executor, health))


def run_fast(main: Coroutine[Any, Any, None]) -> None:
    """``main`` on an event loop of its own, uvloop's if it is installed (extra ``fast``), with a calm collector."""
    calm_garbage_collector()
    run_loop = asyncio.run
    # Runs outside of the handler: else this would be the context of every error that a workflow records.
    with contextlib.suppress(ImportError):
        from uvloop import run as run_loop
    run_loop(main)


def supervise(commands: Sequence[Sequence[str]]) -> None:
    """Keep a child with each of these command lines running until SIGTERM or SIGINT, which they get as well. A child
    that dies is replaced, with growing pauses if it dies again at once."""
    stopping, processes = False, len(commands)

    def on_signal(number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True
        for child in children.values():
            child.send_signal(number)

    children: dict[int, subprocess.Popen[bytes]] = {}
    pauses = [RESTART_FIRST_SECONDS] * processes
    begun = [0.0] * processes
    due = [0.0] * processes
    life, _held_open = os.pipe()
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    while not stopping or children:
        now = time.monotonic()
        for place in range(processes):
            child = children.get(place)
            if child is not None and child.poll() is not None:
                del children[place]
                if not stopping:
                    logger.warning("process %d ended with %s; replacing it", child.pid, child.returncode)
                    pauses[place] = (
                        RESTART_FIRST_SECONDS
                        if now - begun[place] > RESTART_MAX_SECONDS
                        else min(pauses[place] * 2, RESTART_MAX_SECONDS)
                    )
                    due[place] = now + pauses[place]
            if place not in children and not stopping and now >= due[place]:
                # A group of its own: the terminal's Ctrl-C reaches the children once, through us.
                children[place] = subprocess.Popen(
                    commands[place],
                    start_new_session=True,
                    pass_fds=[life],
                    env=lifeline.environment_with(life),
                )
                begun[place] = now
        time.sleep(0.1)
