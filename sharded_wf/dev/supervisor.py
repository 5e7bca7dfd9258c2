"""The small process between an embedded server and its owners: starts Postgres, and stops it when all owners are gone.

An owner can die in ways that run no code of its own (SIGKILL), so somebody else has to notice. Each owner keeps one
connection to this process; the system closes it, however the owner ends; when none is left the server is stopped.
It runs as a plain script, without the package, so that it starts quickly and weighs little. It holds the data
directory's lock (inherited, open) as long as Postgres runs.

Over its connection an owner first reads the postmaster's process ID, a line of text. It may write the name of a stop
mode. The end of the connection says that Postgres has stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

StopMode = Literal["fast", "immediate"]

FREEZE_SECONDS = 15.0
"""How long a process may take to stop after SIGSTOP: it acts only when the process leaves the kernel."""
FREEZE_POLL_SECONDS = 0.001
FAST_STOP_SECONDS = 60.0
IMMEDIATE_STOP_SECONDS = 15.0
STOP_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


def process_family(pid: int) -> list[int]:
    """A postmaster and its children, which are all the processes of a server; without those that ended (zombies)."""
    family = [pid]
    if Path("/proc/self/stat").exists():
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and _proc_parent(entry.name) == pid:
                family.append(int(entry.name))
        return family
    shown = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in shown.splitlines())
    return family + [int(row[0]) for row in rows if int(row[1]) == pid and not row[2].startswith("Z")]


def _proc_parent(pid: str) -> int | None:
    found = _proc_state(pid)
    return found[1] if found is not None and found[0] not in "ZX" else None


def _proc_state(pid: str) -> tuple[str, int] | None:
    """The state, a letter, and the parent of a process; None if there is none."""
    try:
        text = Path("/proc", pid, "stat").read_text(errors="replace")
    except OSError:
        return None  # it ended while we looked
    state, parent = text.rpartition(")")[2].split()[:2]  # the name before it may hold anything
    return state, int(parent)


def _state(pid: int) -> str:
    """The letter of a process' state; empty if there is no such process."""
    if Path("/proc/self/stat").exists():
        found = _proc_state(str(pid))
        return found[0] if found is not None else ""
    shown = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return shown.strip()[:1]


def is_alive(pid: int) -> bool:
    """Whether the process runs or is stopped; a zombie is dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _state(pid) not in ("", "Z", "X")


def wait_frozen(pids: Sequence[int], deadline: float) -> bool:
    """Wait until each process is stopped, or has ended; False if the monotonic ``deadline`` came first."""
    for pid in pids:
        while _state(pid) not in ("T", "t", "", "Z", "X"):
            if time.monotonic() > deadline:
                return False
            time.sleep(FREEZE_POLL_SECONDS)
    return True


def freeze_family(pid: int) -> bool:
    """SIGSTOP all processes of the server whose postmaster is ``pid``, and wait until they have stopped, those included
    that the postmaster forks meanwhile. False if one did not within ``FREEZE_SECONDS``."""
    deadline = time.monotonic() + FREEZE_SECONDS
    return wait_frozen(signal_family(pid, signal.SIGSTOP), deadline)


def signal_family(pid: int, number: signal.Signals) -> list[int]:
    """Send a signal to all processes of the server whose postmaster is ``pid``, none of which escapes by a late fork.

    Returns the processes that it was sent to.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    wait_frozen([pid], time.monotonic() + FREEZE_SECONDS)  # a postmaster that has stopped has no more children
    family = process_family(pid)
    for member in reversed(family):  # the postmaster last, so that it sees nobody die
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, number)
    return family


class Supervisor:
    """One Postgres server and those who want it to run."""

    def __init__(self, config: dict[str, Any], owner: socket.socket) -> None:
        self.config = config
        self.holders: set[socket.socket] = set()
        self.selector = selectors.DefaultSelector()
        self.stopping: list[tuple[float, signal.Signals]] = []
        self.abandoned = False
        self.wake_read, self.wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        os.set_blocking(self.wake_write, False)
        signal.set_wakeup_fd(self.wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.stop("fast"))
        self.selector.register(self.wake_read, selectors.EVENT_READ)
        self.listener = self.listen()
        self.postmaster = self.launch()
        self.admit(owner)

    def listen(self) -> socket.socket:
        path = self.config["control"]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        self.selector.register(listener, selectors.EVENT_READ)
        return listener

    def launch(self) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                self.become_postgres()
            except Exception as error:  # noqa: BLE001  whatever it was, it is said, and this process ends
                os.write(2, f"can't start Postgres: {error}\n".encode())
            finally:
                os._exit(127)
        return pid

    def become_postgres(self) -> NoReturn:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        die_with_parent = parent_death_call()  # loaded as ourselves: the account may not get to Python's own files
        if self.config["switch"]:
            os.setgroups([])
            os.setgid(self.config["gid"])
            os.setuid(self.config["uid"])
        die_with_parent()
        os.chdir(self.config["data"])
        os.umask(0o077)
        program = self.config["postgres"]  # also its first argument: by it Postgres finds its libraries
        os.execve(program, [program, "-D", self.config["data"]], self.config["environment"])

    def admit(self, holder: socket.socket) -> None:
        holder.setblocking(False)
        try:
            holder.send(f"{self.postmaster}\n".encode())
        except OSError:
            holder.close()
            return
        self.holders.add(holder)
        self.selector.register(holder, selectors.EVENT_READ)

    def hear(self, holder: socket.socket) -> None:
        try:
            said = holder.recv(64)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if said:
            self.stop(said.decode(errors="replace").strip())
            return
        self.selector.unregister(holder)
        self.holders.discard(holder)
        holder.close()
        if not self.holders and not self.stopping:
            self.abandoned = True
            self.stop("fast")

    def stop(self, mode: str) -> None:
        """Begin to stop: by the mode, by harder means if that takes too long."""
        now = time.monotonic()
        plan = [(now, STOP_SIGNALS.get(mode, signal.SIGINT)), (now + FAST_STOP_SECONDS, signal.SIGQUIT)]
        if mode == "immediate":
            plan = plan[:1]
        self.stopping = [*plan, (plan[-1][0] + IMMEDIATE_STOP_SECONDS, signal.SIGKILL)]
        if self.listener.fileno() >= 0:  # who comes from now on comes too late
            self.selector.unregister(self.listener)
            self.listener.close()
        signal_family(self.postmaster, signal.SIGCONT)  # it may have been paused

    def press(self) -> float | None:
        """Send the signals of the stop plan that are due; seconds until the next, or None if there is none."""
        while self.stopping:
            wait = self.stopping[0][0] - time.monotonic()
            if wait > 0:
                return wait
            _, number = self.stopping.pop(0)
            if number is signal.SIGKILL:
                signal_family(self.postmaster, number)
            else:
                os.kill(self.postmaster, number)
        return None

    def run(self) -> int:
        """Serve until Postgres has ended; its exit status."""
        while True:
            ended, status = os.waitpid(self.postmaster, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            for key, _ in self.selector.select(self.press()):
                if key.fd == self.wake_read:
                    os.read(self.wake_read, 512)
                elif key.fileobj is self.listener:
                    with contextlib.suppress(OSError):
                        self.admit(self.listener.accept()[0])
                elif isinstance(key.fileobj, socket.socket):
                    self.hear(key.fileobj)

    def leave(self) -> None:
        """Remove what belongs to the run, and the temporary data of a server that nobody wants any more."""
        with contextlib.suppress(OSError):  # after a crash Postgres' own sockets are still there, until the next start
            os.unlink(self.config["control"])
            os.rmdir(self.config["sockets"])
        if self.abandoned and self.config["temporary"]:
            for directory in (self.config["directory"], self.config["sockets"]):
                shutil.rmtree(directory, ignore_errors=True)


def parent_death_call() -> Callable[[], object]:
    """What lets Linux stop Postgres if even this process is killed; elsewhere that can't be had.

    To be called last: a change of the account undoes it.
    """
    if sys.platform != "linux":
        return lambda: None
    import ctypes  # here, since only the process that becomes Postgres needs it

    library = ctypes.CDLL(None)
    set_parent_death_signal = 1
    return lambda: library.prctl(set_parent_death_signal, int(signal.SIGINT), 0, 0, 0)


def main() -> int:
    """Run one server: the configuration is the first argument, as JSON; file descriptors as it says."""
    config: dict[str, Any] = json.loads(sys.argv[1])
    for descriptor in (config["owner_fd"], config["lock_fd"]):
        os.set_inheritable(descriptor, False)
    supervisor = Supervisor(config, socket.socket(fileno=config["owner_fd"]))
    status = supervisor.run()
    supervisor.leave()
    return 0 if status == 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
