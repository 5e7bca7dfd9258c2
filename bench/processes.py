"""The processes of a run: executors as ``sharded-wf worker`` runs them, and clients. No forks of ours."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import BenchFailed

from .counters import CLIENTS_MAX, EXECUTORS_MAX, FINISHED, STARTED, Counters
from .workloads import LEDGER_VARIABLE

END_SECONDS_MAX = 60.0
LOG_SHOWN_LINES = 15
_PACKAGE = __package__ or "bench"
_IMPORT_FROM = Path(__file__).resolve().parents[len(_PACKAGE.split("."))]


class ExecutorOrder(msgspec.Struct, frozen=True):
    """What an executor process is told. ``options``: keywords of ``Executor``."""

    shards: tuple[tuple[str, str], ...]
    counters: str
    cell: int
    options: dict[str, Any] = {}


class ClientOrder(msgspec.Struct, frozen=True):
    """What a client process is told. ``rate``: units a second of the open loop; None: closed. ``backlog``: how many
    workflows it may be ahead. ``results``: the file for what it has timed. ``seed``: of its arrivals."""

    shards: tuple[tuple[str, str], ...]
    counters: str
    cell: int
    clients: int
    workload: str
    steps: int
    backlog: int
    rate: float | None
    ledger: str
    results: str
    seed: int


class Timed(msgspec.Struct, frozen=True, array_like=True):
    """One sampled start: its shard, the moment when it was meant to start (monotonic), seconds until its result."""

    shard: str
    intended_at: float
    seconds: float


def shards_of(config: ClusterConfig) -> tuple[tuple[str, str], ...]:
    return tuple((shard.name, shard.dsn) for shard in config.shards)


def read_order() -> bytes:
    """The line on standard input that says what to do; the input stays open behind it."""
    line = b""
    while not line.endswith(b"\n"):
        read = os.read(0, 65536)
        if not read:
            raise BenchFailed("no order came: these processes are started by the bench")
        line += read
    return line


def config_of(shards: tuple[tuple[str, str], ...]) -> ClusterConfig:
    return ClusterConfig("bench", tuple(ShardConfig(name, dsn) for name, dsn in shards))


class Processes:
    """Starts and ends them, and reads what they tell. Leaving the context kills whatever still runs."""

    def __init__(self, config: ClusterConfig, ledger: str, directory: Path) -> None:
        self._shards = shards_of(config)
        self._ledger = ledger
        self._directory = directory
        self.counters = Counters.create(directory / "counters")
        self.executors: list[subprocess.Popen[bytes]] = []
        self.clients: list[subprocess.Popen[bytes]] = []
        self._all: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        self._expected_to_end: set[int] = set()

    def start_executors(self, count: int, options: dict[str, Any] | None = None) -> None:
        if len(self.executors) + count > EXECUTORS_MAX:
            raise BenchFailed(f"{count} executor processes: at most {EXECUTORS_MAX}")
        for _ in range(count):
            cell = FINISHED + len(self.executors)
            order = ExecutorOrder(self._shards, str(self._directory / "counters"), cell, options or {})
            self.executors.append(self._launch("executor_process", order, f"executor {len(self.executors) + 1}"))

    def start_clients(
        self, count: int, workload: str, steps: int, *, backlog: int, rate: float | None = None, seed: int = 1
    ) -> None:
        if len(self.clients) + count > CLIENTS_MAX:
            raise BenchFailed(f"{count} client processes: at most {CLIENTS_MAX}")
        for _ in range(count):
            number = len(self.clients)
            order = ClientOrder(
                self._shards, str(self._directory / "counters"), STARTED + number, count, workload, steps, backlog,
                None if rate is None else rate / count, self._ledger, str(self._results(number)), seed + number,
            )  # fmt: skip
            self.clients.append(self._launch("client_process", order, f"client {number + 1}"))

    def _results(self, number: int) -> Path:
        return self._directory / f"timed-{number}.json"

    def _launch(self, module: str, order: msgspec.Struct, name: str) -> subprocess.Popen[bytes]:
        log = self._directory / f"{name.replace(' ', '-')}.log"
        paths = [str(_IMPORT_FROM), *filter(None, [os.environ.get("PYTHONPATH")])]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", f"{_PACKAGE}.{module}"],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the bench, which ends them in order
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), LEDGER_VARIABLE: self._ledger},
            )
        assert process.stdin is not None
        # The pipe stays open: a process whose bench is gone sees its end, and ends as well. The order is one line.
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        process.stdin.flush()
        self._all.append((name, process, log))
        return process

    def check(self) -> None:
        """``BenchFailed`` if one of them has ended by itself, with the end of what it said."""
        for name, process, log in self._all:
            code = process.poll()
            if code is not None and (code != 0 or process.pid not in self._expected_to_end):
                said = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_SHOWN_LINES:])
                raise BenchFailed(f"{name} ended with {code} in the middle of the run; it said at last:\n{said}")

    def finished(self) -> int:
        """How many workflows have ended, by the executors' word."""
        return self.counters.total(FINISHED, len(self.executors))

    def started(self) -> int:
        """How many workflows were started (children that will come included), by the clients' word."""
        return self.counters.total(STARTED, len(self.clients))

    def end(self, processes: list[subprocess.Popen[bytes]]) -> None:
        """Ask them to end in order, and wait for it."""
        for process in processes:
            self._expected_to_end.add(process.pid)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS_MAX
        for process in processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise BenchFailed(f"process {process.pid} did not end within {END_SECONDS_MAX:g} s") from None
        self.check()

    def timed(self) -> list[Timed]:
        """What the clients have timed; they must have ended."""
        found: list[Timed] = []
        for number in range(len(self.clients)):
            if self._results(number).exists():
                found += msgspec.json.decode(self._results(number).read_bytes(), type=list[Timed])
        return found

    def kill(self) -> None:
        for _, process, _ in self._all:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()


@contextmanager
def open_processes(config: ClusterConfig, ledger: str) -> Generator[Processes]:
    with ExitStack() as exits:
        directory = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="sharded-wf-bench-")))
        processes = Processes(config, ledger, directory)
        exits.callback(processes.kill)
        yield processes
