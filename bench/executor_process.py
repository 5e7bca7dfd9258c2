"""One executor, as ``sharded-wf worker`` runs it. A thread tells the others twenty times a second what has finished."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from sharded_wf import Executor, Retention
from sharded_wf.executor.worker import run

from .counters import Counters
from .features import app
from .processes import ExecutorOrder, config_of, read_order

TELL_EVERY_SECONDS = 0.05


def end_with_the_bench() -> None:
    """Wait for the end of standard input, which the bench holds open."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def tell_for_ever(executor: Executor, counters: Counters, cell: int) -> None:
    while True:
        counters[cell] = executor.finished
        time.sleep(TELL_EVERY_SECONDS)


def options_of(order: ExecutorOrder) -> dict[str, Any]:
    """The keywords of ``Executor``: plain data that crossed the pipe becomes what it means here, and nowhere else."""
    options = dict(order.options)
    if options.get("retention") is not None:
        options["retention"] = Retention(options["retention"])
    return options


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    order = msgspec.json.decode(read_order(), type=ExecutorOrder)
    counters = Counters(Path(order.counters))
    executor = Executor(app, config_of(order.shards), **options_of(order))
    threading.Thread(target=end_with_the_bench, daemon=True).start()
    threading.Thread(target=tell_for_ever, args=(executor, counters, order.cell), daemon=True).start()
    run(executor)
    counters[order.cell] = executor.finished


if __name__ == "__main__":
    main()
