"""Whether the server at the other end of a move's connection lives.

How long a chunk, a comparison or a commit takes depends on the rows, the disks and everybody else's load: no bound of
that kind would be right for all. But a server that works answers a small question meanwhile. So each connection of a
coordinator has another one beside it, which asks, and as long as there are answers the first has all the time it needs.
A frozen server, or a silent network, gives none. An answer also says what the first one's session does: if that waits
for us while we wait for it, something was lost on the way, and will never come.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import psycopg
from psycopg.pq import TransactionStatus

from sharded_wf.cluster.fanout import reason_of
from sharded_wf.limits import MOVE_BEAT_SECONDS, MOVE_SILENCE_SECONDS
from sharded_wf.postgres.connect import Connection, Deadline, connection
from sharded_wf.postgres.timeline import shut
from sharded_wf.reshard.tables import SQL


class Pulse:
    """Of the server behind one connection, felt on another one ``beside`` it."""

    def __init__(self, watched: Connection, beside: Connection, deadline: Deadline) -> None:
        self._watched = watched
        self._beside = beside
        self._deadline = deadline
        self._pid = watched.info.backend_pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._feel, name="pulse", daemon=True)
        self._waits_for = ""
        self._broken: str | None = None

    @property
    def stopped(self) -> str | None:
        """Why the connection was shut; None: it was not, or not for this."""
        if not self._deadline.passed:
            return None
        if self._broken is not None:
            return self._broken
        if self._waits_for == "standby":
            return f"a commit there waits for its synchronous standby, for {MOVE_SILENCE_SECONDS:g} s by now"
        return f"it has not answered for {MOVE_SILENCE_SECONDS:g} s: its server, its machine or the network hangs"

    def begin(self) -> None:
        """From now on the connection is shut when the server shows no life."""
        self._thread.start()

    def end(self) -> None:
        """The connection is left alone from now on."""
        self._over.set()
        self._thread.join(0.0 if self._deadline.passed else MOVE_BEAT_SECONDS)
        if self._thread.is_alive():
            shut(self._beside)
            self._thread.join()

    def _feel(self) -> None:
        while not self._over.wait(MOVE_BEAT_SECONDS):
            try:
                row = self._beside.execute(SQL["look_at_backend"].on(), (self._pid,)).fetchone()
            except psycopg.Error as error:
                if not self._over.is_set():  # else it was shut because nobody asks any more
                    self._broken = reason_of(error)
                    self._deadline.end()
                return
            if self._is_well(row):
                self._deadline.put_off()

    def _is_well(self, row: tuple[object, ...] | None) -> bool:
        if row is None:
            return False  # the session has ended, and nobody told us
        self._waits_for, seconds = cast(tuple[str, float], row)
        if seconds < MOVE_BEAT_SECONDS or not self._waits_for:
            return True
        return self._waits_for == "client" and self._watched.info.transaction_status != TransactionStatus.ACTIVE


@contextmanager
def pulse_of(dsn: str, conn: Connection, purpose: str) -> Generator[Pulse]:
    """Shut a connection to this DSN if its server shows no life for ``MOVE_SILENCE_SECONDS`` while the block runs. What
    is under way on it then raises ``psycopg.OperationalError``, and ``Pulse.stopped`` says why. Raises the same if the
    second connection can't be made."""
    with (
        connection(dsn, purpose=f"{purpose} pulse", deadline_seconds=None) as beside,
        Deadline(conn, MOVE_SILENCE_SECONDS) as deadline,
    ):
        pulse = Pulse(conn, beside, deadline)
        pulse.begin()
        try:
            yield pulse
        finally:
            pulse.end()
