"""One process's hold on a running server: its connection to the server's supervisor.

The server runs as long as anybody holds it. Holding ends by letting go, by dying, or with the server itself, which the
holder sees as the end of the connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, BinaryIO, Self

from sharded_wf.dev import supervisor


class Ownership:
    """A hold on a server, which is starting, running or stopping; ended ones are not used again."""

    def __init__(self, channel: socket.socket, child: subprocess.Popen[bytes] | None) -> None:
        self._channel = channel
        self._child = child
        self.postmaster = 0
        """The postmaster's process ID, once :meth:`wait_launched` has returned."""
        _held.add(self)

    @classmethod
    def launch(cls, config: dict[str, Any], lock: int, log: BinaryIO) -> Self:
        """Start a supervisor, which starts Postgres, and hand the open, locked file ``lock`` over to it."""
        ours, theirs = socket.socketpair()
        with theirs:
            config = {**config, "owner_fd": theirs.fileno(), "lock_fd": lock}
            child = subprocess.Popen(
                # Isolated and without site-packages: it starts faster, and nothing of the caller's can disturb it.
                [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                pass_fds=(theirs.fileno(), lock),
                start_new_session=True,  # Ctrl-C in the terminal is for the program, which may still need its database
            )
        os.close(lock)
        return cls(ours, child)

    @classmethod
    def join(cls, control: Path) -> Self | None:
        """Share the server whose supervisor listens there; None if none does, or not for long any more."""
        channel = socket.socket(socket.AF_UNIX)
        try:
            channel.connect(str(control))
        except OSError:
            channel.close()
            return None
        return cls(channel, None)

    def wait_launched(self) -> bool:
        """Wait until the postmaster has a process ID; False if the server ended before."""
        said = b""
        while not said.endswith(b"\n"):
            received = self._channel.recv(64)
            if not received:
                return False
            said += received
        self.postmaster = int(said)
        return True

    def has_ended(self, wait_seconds: float = 0.0) -> bool:
        """Whether the server has ended, or ends within the time given."""
        poll = select.poll()  # select() can't look at the high descriptors of a process with many connections
        poll.register(self._channel, select.POLLIN)
        return bool(poll.poll(wait_seconds * 1000))

    def request_stop(self, mode: supervisor.StopMode) -> None:
        with contextlib.suppress(OSError):  # it has stopped already
            self._channel.sendall(f"{mode}\n".encode())

    def release(self) -> None:
        """Let go: the server stops if nobody else holds it. The hold itself is ended by :meth:`wait_end`, which waits
        for that, or :meth:`leave`, which does not."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)

    def leave(self) -> None:
        """Let go of a server that others may go on with."""
        self._channel.close()
        _held.discard(self)
        if self._child is not None:  # it ends some day, and must not stay behind as a zombie
            threading.Thread(target=self._child.wait, name="embedded-server", daemon=True).start()

    def wait_end(self) -> None:
        """Wait until the server has stopped and its supervisor is gone."""
        with contextlib.suppress(OSError):
            while self._channel.recv(64):
                pass
        self._channel.close()
        _held.discard(self)
        if self._child is not None:
            self._child.wait()

    def disown(self) -> None:
        """Forget it, in a forked process, which must not keep its parent's server alive."""
        self._channel.close()


_held: weakref.WeakSet[Ownership] = weakref.WeakSet()


def _disown_in_child() -> None:
    for ownership in list(_held):
        ownership.disown()


os.register_at_fork(after_in_child=_disown_in_child)
