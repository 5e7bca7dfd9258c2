"""Python processes that a test starts, listens to, freezes and kills.

A worker script says where it is by printing lines ("claimed", "in step 3"); the test waits for the line instead of
sleeping. What it prints is kept and shown when a wait fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

PROJECT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 60.0
"""How long a wait lasts that comes true within a second or two; on a machine that is busy with something else."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on. By chance, and below those that the system deals out by itself:
    tests that run beside this one don't come by it until whoever is told of it has taken it."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class WorkerProcess:
    """One Python process, in a process group of its own. As a context manager it is killed at the end.

    Args:
        script: the program's text (it may be indented as a whole) or the path of a file.
        arguments: ``sys.argv[1:]`` of the script.
        environment: variables set on top of ours.
        python: the interpreter, ours unless given.
    """

    def __init__(
        self,
        script: str | Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        command = [str(script)] if isinstance(script, Path) else ["-c", textwrap.dedent(script)]
        self._process = subprocess.Popen(
            [python, "-u", *command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": str(PROJECT), **(environment or {})},
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._read = 0
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            with self._news:
                self.lines.append(raw.decode(errors="replace").rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_line(self, text: str, timeout: float = WAIT_SECONDS) -> str:
        """Wait for a line that contains the text, after the line of the last such call; the line."""
        return self.wait_lines(text, 1, timeout)[0]

    def wait_lines(self, text: str, count: int, timeout: float = WAIT_SECONDS) -> list[str]:
        """Wait for so many lines that contain the text; the lines."""
        deadline = time.monotonic() + timeout
        found: list[str] = []
        with self._news:
            while True:
                while self._read < len(self.lines):
                    line = self.lines[self._read]
                    self._read += 1
                    if text in line:
                        found.append(line)
                        if len(found) == count:
                            return found
                remaining = deadline - time.monotonic()
                if self._ended or remaining <= 0:
                    why = "the process ended" if self._ended else f"{timeout} s went by"
                    shown = "\n  ".join(self.lines[-60:])
                    raise AssertionError(f"{why} before {count} line(s) with {text!r}; it printed:\n  {shown}")
                self._news.wait(remaining)

    def say(self, line: str) -> None:
        """Write a line to the script's standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, not to its children."""
        self._process.send_signal(number)

    def freeze(self) -> None:
        """SIGSTOP: the process does nothing more, its connections stay open. Returns when it has stopped."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        """SIGCONT: the process goes on."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL the process and all of its process group; waits until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(WAIT_SECONDS)

    def terminate(self) -> None:
        """SIGTERM, which asks the process to drain."""
        self.signal(signal.SIGTERM)

    def wait(self, timeout: float = WAIT_SECONDS) -> int:
        """Wait for the end of the process; its exit code (negative: the signal that killed it)."""
        code = self._process.wait(timeout)
        self._reader.join(timeout)
        return code

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def output(self) -> str:
        """All that it printed so far."""
        return "\n".join(self.lines)

    def close(self) -> None:
        """Kill it if it still runs, and give back what it took."""
        if self._process.poll() is None:
            self.kill()
        self._reader.join(WAIT_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def wait_until(condition: Callable[[], bool], what: str, timeout: float = WAIT_SECONDS, interval: float = 0.02) -> None:
    """Wait for what no signal tells (a row in a database): asks again until it holds, and fails by name."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout} s")
        time.sleep(interval)


async def until(condition: Callable[[], bool], what: str) -> None:
    """As ``wait_until``, for code on an event loop. One that blocks leaves the loop as much time as it takes."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        begun = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"{what} did not come true within {WAIT_SECONDS} s")
        await asyncio.sleep(max(0.005, now - begun))
