"""The same question to every shard at once, with one deadline: a shard that hangs delays nobody else's answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import psycopg

from sharded_wf.config import ShardConfig
from sharded_wf.errors import ShardUnavailable
from sharded_wf.postgres.connect import Connection, connect_seconds, connection
from sharded_wf.postgres.failures import unavailable

T = TypeVar("T")


@dataclass(slots=True)
class Answers(Generic[T]):
    """What the shards answered, and why others did not; both by the name of the shard."""

    given: dict[str, T] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)

    def all_or_raise(self) -> dict[str, T]:
        """Every shard's answer; raises the failure of one that gave none."""
        for error in self.failed.values():
            raise error
        return self.given


def ask_each(
    shards: Iterable[ShardConfig],
    question: Callable[[ShardConfig, Connection], T],
    *,
    purpose: str,
    deadline_seconds: float | None,
    patience_seconds: float | None = None,
) -> Answers[T]:
    """Ask every shard, each in a thread and on a connection of its own.

    A shard that can't be reached, or breaks off, fails with ``ShardUnavailable``; whatever else ``question`` raises
    fails as it is. ``deadline_seconds`` counts from the connection (``None``: no deadline). ``patience_seconds``: how
    long to wait for answers in all, connecting included; unless said, until the deadline of the slowest."""
    asked = list(shards)
    answers: Answers[T] = Answers()

    def ask(shard: ShardConfig) -> None:
        try:
            answers.given[shard.name] = ask_one(shard, question, purpose=purpose, deadline_seconds=deadline_seconds)
        except Exception as error:  # noqa: BLE001 - kept, and judged by whoever asked
            answers.failed[shard.name] = error

    # Daemons: a thread that hangs in the system's name resolution must not keep the process from ending.
    threads = {shard.name: threading.Thread(target=ask, args=(shard,), daemon=True) for shard in asked}
    for thread in threads.values():
        thread.start()
    give_up = None
    if deadline_seconds is not None:
        slowest = max((connect_seconds(shard.dsn) for shard in asked), default=0.0)
        give_up = time.monotonic() + deadline_seconds + slowest
    if patience_seconds is not None:
        give_up = time.monotonic() + patience_seconds
    for thread in threads.values():
        thread.join(None if give_up is None else max(give_up - time.monotonic(), 0))
    in_time: Answers[T] = Answers()
    for shard in asked:
        if shard.name in answers.given:
            in_time.given[shard.name] = answers.given[shard.name]
        else:
            late = ShardUnavailable(shard.name, "it did not answer in time")
            in_time.failed[shard.name] = answers.failed.get(shard.name, late)
    return in_time


def ask_one(
    shard: ShardConfig,
    question: Callable[[ShardConfig, Connection], T],
    *,
    purpose: str,
    deadline_seconds: float | None,
    accept_any: bool = False,
) -> T:
    """Ask one shard, in this thread; with ``accept_any`` also an old primary of it. Raises ``ShardUnavailable`` if it
    can't be reached or breaks off."""
    try:
        with connection(shard.dsn, purpose=purpose, deadline_seconds=deadline_seconds, accept_any=accept_any) as conn:
            return question(shard, conn)
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise unavailable(shard.name, error, reason_of(error)) from None


def reason_of(error: Exception) -> str:
    """What psycopg's error says, in one line, without libpq's questions to the reader."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.endswith("?") and not line.startswith("Is the server running")]
    text = " ".join(line for line in kept if line != "accepting TCP/IP connections")
    return text.removeprefix("connection failed: ") or type(error).__name__
