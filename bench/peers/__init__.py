"""Who is compared: each contender runs in its fastest documented configuration. See README.md beside this file."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from .bare_loop import BARE_LOOP
from .contender import Contender
from .dbos import DBOS_DIRECT, DBOS_QUEUE
from .ours import SHARDED_WF
from .pgqueuer import PGQUEUER
from .procrastinate import PROCRASTINATE

CONTENDERS: tuple[Contender, ...] = (BARE_LOOP, SHARDED_WF, DBOS_DIRECT, DBOS_QUEUE, PGQUEUER, PROCRASTINATE)


def find_version(contender: Contender) -> str | None:
    """The installed version of what is measured; None if it, or something that it needs here, is not installed."""
    try:
        found = [version(package) for package in contender.packages]
    except PackageNotFoundError:
        return None
    return found[0]
