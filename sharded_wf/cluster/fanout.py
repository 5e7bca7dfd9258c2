"""The same question to every shard at once, with one deadline: a shard that hangs delays nobody else's answer.

A frozen server takes connections (its kernel does) and says nothing. So once some shard has been connected to, the
others have ``LOOK_SECONDS`` for it; and one that was given up is given less the next time: what is made of several
such rounds waits for it once.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import psycopg

from sharded_wf.config import ShardConfig
from sharded_wf.errors import ShardUnavailable
from sharded_wf.limits import LOOK_AGAIN_SECONDS, LOOK_SILENT_FOR_SECONDS
from sharded_wf.postgres.connect import Connection, connect_seconds, connection, look_seconds
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


_silent: dict[str, float] = {}
"""When this process gave up connecting to a DSN, if nobody has connected to it since."""


class _Round(Generic[T]):
    """One question on its way to several shards: who was connected to, who has answered, who was given up."""

    def __init__(self, asked: Sequence[ShardConfig], patience_seconds: float | None) -> None:
        self._asked = {shard.name: shard for shard in asked}
        self._begun = time.monotonic()
        self._patience = math.inf if patience_seconds is None else patience_seconds
        self._changed = threading.Condition()
        self._connected: set[str] = set()
        self._first_connected: float | None = None
        self._given_up: dict[str, ShardUnavailable] = {}
        self._answers: Answers[T] = Answers()

    def begin(self, shard: ShardConfig) -> None:
        """The shard was connected to. Raises ``ShardUnavailable`` if that came too late to ask anything of it."""
        with self._changed:
            _silent.pop(shard.dsn, None)
            if shard.name in self._given_up:
                raise self._given_up[shard.name]
            self._connected.add(shard.name)
            if self._first_connected is None:
                self._first_connected = time.monotonic() - self._begun
            self._changed.notify()

    def give(self, shard: ShardConfig, answer: T) -> None:
        """What the shard answered."""
        with self._changed:
            self._answers.given[shard.name] = answer
            self._changed.notify()

    def fail(self, shard: ShardConfig, error: Exception) -> None:
        """Why the shard gave no answer."""
        with self._changed:
            self._answers.failed[shard.name] = error
            self._changed.notify()

    def wait(self) -> Answers[T]:
        """Until all have answered, or were given up."""
        with self._changed:
            while left := self._left():
                now = time.monotonic() - self._begun
                times = {name: self._time_for(self._asked[name]) for name in left}
                for name, seconds in times.items():
                    if now >= seconds:
                        self._give_up(name, seconds)
                soonest = min(times.values())
                if now < soonest:
                    self._changed.wait(None if soonest == math.inf else soonest - now)
            given, failed = dict(self._answers.given), self._answers.failed | self._given_up
        return Answers(
            {name: given[name] for name in self._asked if name in given and name not in failed},
            {name: failed[name] for name in self._asked if name in failed},
        )

    def _left(self) -> list[str]:
        done = self._answers.given.keys() | self._answers.failed.keys() | self._given_up.keys()
        return [name for name in self._asked if name not in done]

    def _time_for(self, shard: ShardConfig) -> float:
        if shard.name in self._connected or self._first_connected is None:
            return self._patience
        recently = time.monotonic() - _silent.get(shard.dsn, -math.inf) < LOOK_SILENT_FOR_SECONDS
        seconds = LOOK_AGAIN_SECONDS if recently else look_seconds(shard.dsn)
        return min(self._first_connected + seconds, self._patience)

    def _give_up(self, name: str, seconds: float) -> None:
        if name in self._connected:
            reason = f"it can be connected to, but did not answer within {seconds:.2g} s"
        else:
            reason = "it does not answer: its server, its machine or the network hangs"
            _silent[self._asked[name].dsn] = time.monotonic()
        self._given_up[name] = ShardUnavailable(name, reason)


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
    fails as it is. One that can't be connected to within ``LOOK_SECONDS``, while another one can, is given up, and
    asked nothing. ``deadline_seconds`` counts from the connection (``None``: no deadline). ``patience_seconds``: how
    long to wait for answers in all, connecting included; unless said, until the deadline of the slowest."""
    asked = list(shards)
    if patience_seconds is None and deadline_seconds is not None:
        patience_seconds = deadline_seconds + max((connect_seconds(shard.dsn) for shard in asked), default=0.0)
    answers: _Round[T] = _Round(asked, patience_seconds)

    def begun(shard: ShardConfig, conn: Connection) -> T:
        answers.begin(shard)
        return question(shard, conn)

    def ask(shard: ShardConfig) -> None:
        try:
            answer = ask_one(shard, begun, purpose=purpose, deadline_seconds=deadline_seconds)
        except Exception as error:  # noqa: BLE001 - kept, and judged by whoever asked
            answers.fail(shard, error)
        else:
            answers.give(shard, answer)

    # Daemons: a thread that hangs in the system's name resolution must not keep the process from ending.
    for shard in asked:
        threading.Thread(target=ask, args=(shard,), daemon=True).start()
    return answers.wait()


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
