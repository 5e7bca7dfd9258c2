"""The demo: real work on four shards by two executor processes, one of which is killed, and a check of the result.

Every ``.py`` file of the running interpreter's standard library is a workflow (``demo_flows``), and every package is a
parent that gathers its files' workflows as children. Nothing is staged: the executors are ``sharded-wf worker``
processes with default settings but for their concurrency, and the one that dies gets SIGKILL.

``Demo.run`` does it and keeps ``Demo.view`` up to date for whoever draws it; the verdict is ``demo_verdict``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from sharded_wf.client import Client
from sharded_wf.cluster.shards import ShardSet
from sharded_wf.config import ClusterConfig
from sharded_wf.dev.child import start_child
from sharded_wf.dev.demo_flows import Counts, count_file, count_package
from sharded_wf.dev.demo_rows import WorkflowRow, count_claims, count_done, find_leases, held_under, read_results
from sharded_wf.errors import DemoFailed

APP = "sharded_wf.dev.demo_flows:app"
EXECUTORS = 2
CONCURRENCY_WORKFLOWS = 100
"""Few enough in memory that both executors have their share, and that parents have to park to make room."""
KILL_AT_FRACTION = 0.4
LOOK_EVERY_SECONDS = 0.25
PATIENCE_SECONDS = 240.0
LOG_SHOWN_LINES = 12
QUIET = {"PYTHONWARNINGS": "ignore"}
"""Parsing old test files warns of their escapes."""


@dataclass
class ExecutorView:
    """One executor process: ``starting``, ``working``, ``killed`` or ``taken over``."""

    number: int
    pid: int
    state: str = "starting"


@dataclass
class View:
    """What can be seen of the demo at this moment."""

    files: int
    packages: int
    doing: str = "starting"
    begun: float = field(default_factory=time.monotonic)
    done: dict[str, int] = field(default_factory=dict)
    executors: list[ExecutorView] = field(default_factory=list)

    @property
    def files_done(self) -> int:
        return sum(self.done.values())

    @property
    def elapsed_seconds(self) -> float:
        return time.monotonic() - self.begun


@dataclass(frozen=True)
class Result:
    """What happened: the counts as the workflows returned them and as one plain process found them, every row, and what
    the killed executor held. ``takeover_seconds``: from the SIGKILL until nothing of that was left to take over."""

    packages: dict[str, list[str]]
    counted: dict[str, Counts]
    expected: dict[str, Counts]
    rows: dict[str, list[WorkflowRow]]
    killed_at_files: int
    held_by_killed: frozenset[str]
    takeover_seconds: float
    work_seconds: float


def find_packages(files: int | None = None, root: Path | None = None) -> dict[str, list[str]]:
    """The ``.py`` files of the running interpreter's standard library by package; at most ``files`` of them, if given,
    taken evenly."""
    top = Path(sysconfig.get_path("stdlib")) if root is None else root
    installed = {"site-packages", "dist-packages"}
    found = [path for path in sorted(top.rglob("*.py")) if not installed & set(path.relative_to(top).parts)]
    if files is not None and files < len(found):
        found = [found[index * len(found) // files] for index in range(files)]
    packages: dict[str, list[str]] = {}
    for path in found:
        name = ".".join(path.parent.relative_to(top).parts) or "stdlib"
        packages.setdefault(name, []).append(str(path))
    return packages


class Demo:
    """One run, on a fresh cluster. ``directory``: for the executors' logs and the ``shards.toml`` they read.
    ``announce`` is told what happens, a line each."""

    def __init__(
        self, config: ClusterConfig, directory: Path, packages: dict[str, list[str]], announce: Callable[[str], None]
    ) -> None:
        self._config = config
        self._directory = directory
        self._packages = packages
        self._announce = announce
        self._processes: list[subprocess.Popen[bytes]] = []
        self._leases: dict[str, bytes] = {}
        self._killed_at_files = 0
        self._killed_at: float | None = None
        self._held: frozenset[str] = frozenset()
        self._takeover_seconds = 0.0
        self.view = View(sum(map(len, packages.values())), len(packages))

    async def run(self) -> Result:
        """Run it. Raises ``DemoFailed`` if an executor ends by itself, or nothing comes of it in minutes."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS), self._check() as expected:
                async with Client.connect(self._config) as client:
                    self._start_executors()
                    begun = time.monotonic()
                    counted = await self._work(client)
                    work_seconds = time.monotonic() - begun
                rows = await self._look_back()
                self.view.doing = "waiting for the plain process"
                return Result(
                    self._packages, counted, await expected, rows, self._killed_at_files, self._held,
                    self._takeover_seconds, work_seconds,
                )  # fmt: skip
        except TimeoutError:
            raise DemoFailed(f"no result within {PATIENCE_SECONDS:g} s\n{self._log_tails()}") from None
        finally:
            self._end_executors()

    @asynccontextmanager
    async def _check(self) -> AsyncGenerator[asyncio.Task[dict[str, Counts]]]:
        """The same computation in one plain process, beside."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", "-m", "sharded_wf.dev.demo_check"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

        async def answer() -> dict[str, Counts]:
            out, _ = await process.communicate(msgspec.json.encode(self._packages))
            if process.returncode:
                raise DemoFailed(f"the plain process ended with {process.returncode}")
            return msgspec.json.decode(out, type=dict[str, Counts])

        task = asyncio.create_task(answer())
        try:
            yield task
        finally:
            if process.returncode is None:
                process.kill()
            await asyncio.gather(task, return_exceptions=True)

    # --- executors ----------------------------------------------------------------------------------------------

    def _start_executors(self) -> None:
        toml = self._directory / "shards.toml"
        lines = ["[cluster]", f'name = "{self._config.name}"']
        for shard in self._config.shards:
            lines += ["[[shard]]", f'name = "{shard.name}"', f"dsn = '{shard.dsn}'"]
        toml.write_text("\n".join(lines) + "\n", encoding="utf-8")
        options = ["--cluster", str(toml), "--concurrency", str(CONCURRENCY_WORKFLOWS)]
        for number in range(1, EXECUTORS + 1):
            with self._log(number).open("wb") as log:
                process = start_child(["worker", APP, *options], output=log, environment=QUIET)
            self._processes.append(process)
            self.view.executors.append(ExecutorView(number, process.pid))
        pids = " and ".join(str(executor.pid) for executor in self.view.executors)
        self._announce(f"started {EXECUTORS} executor processes: {pids}")

    def _end_executors(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def _log(self, number: int) -> Path:
        return self._directory / f"executor-{number}.log"

    def _log_tails(self) -> str:
        tails: list[str] = []
        for executor in self.view.executors:
            with contextlib.suppress(OSError):
                lines = self._log(executor.number).read_text(errors="replace").splitlines()[-LOG_SHOWN_LINES:]
                tails.append("\n".join([f"executor {executor.number} ({executor.state}) said at last:", *lines]))
        return "\n".join(tails)

    def _check_executors(self) -> None:
        for executor, process in zip(self.view.executors, self._processes, strict=True):
            if process.poll() is not None and executor.state in ("starting", "working"):
                raise DemoFailed(f"executor {executor.number} ended with {process.returncode}\n{self._log_tails()}")

    # --- the work -----------------------------------------------------------------------------------------------

    async def _work(self, client: Client) -> dict[str, Counts]:
        """Start a parent for every package, and wait for all of them; watch, and kill, meanwhile."""
        handles = await client.start_many((name, count_package.bind(paths)) for name, paths in self._packages.items())
        self.view.doing = "counting"
        self._announce(
            f"started {len(handles)} parent workflows, which start one for each of {self.view.files:,} files"
        )
        results = asyncio.gather(*(handle.result() for handle in handles))
        watching = asyncio.create_task(self._watch())
        both: set[asyncio.Future[Any]] = {results, watching}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
            if watching.done():
                watching.result()
            counts = await _told(results)
            await watching
        finally:
            results.cancel()
            watching.cancel()
            await asyncio.gather(results, watching, return_exceptions=True)
        return dict(zip(self._packages, counts, strict=True))

    async def _watch(self) -> None:
        """Look again and again until all files are counted and the takeover is over; kill at the moment for it."""
        shards = await ShardSet.open(self._config)
        try:
            while self.view.files_done < self.view.files or self._takeover_seconds == 0:
                self.view.done = await count_done(shards, count_file.name)
                self._check_executors()
                if self._killed_at is None:
                    await self._before_the_kill(shards)
                elif not self._takeover_seconds and not await count_claims(shards, self._leases):
                    self._takeover_seconds = time.monotonic() - self._killed_at
                    self.view.executors[-1].state = "taken over"
                    self._announce(f"its work was taken over {self._takeover_seconds:.1f} s after its death")
                await asyncio.sleep(LOOK_EVERY_SECONDS)
        finally:
            await shards.close()

    async def _before_the_kill(self, shards: ShardSet) -> None:
        if not self.view.files_done:
            return
        for executor in self.view.executors:
            executor.state = "working"
        if self.view.files_done < self.view.files * KILL_AT_FRACTION:
            return
        victim, process = self.view.executors[-1], self._processes[-1]
        self._leases = await find_leases(shards, f"{socket.gethostname()}:{victim.pid}")
        process.kill()
        self._killed_at = time.monotonic()
        self._killed_at_files = self.view.files_done
        process.wait()
        victim.state = "killed"
        self._announce(f"SIGKILL for executor {victim.number} ({victim.pid}), when {self._killed_at_files:,} were done")
        self._held = await self._left_behind(shards)

    async def _left_behind(self, shards: ShardSet) -> frozenset[str]:
        """What the dead one holds, once its last transactions, which the servers still finish, are over."""
        before: set[str] | None = None
        while before != (held := await held_under(shards, self._leases)):
            before = held
            await asyncio.sleep(LOOK_EVERY_SECONDS)
        return frozenset(held)

    async def _look_back(self) -> dict[str, list[WorkflowRow]]:
        shards = await ShardSet.open(self._config)
        try:
            return await read_results(shards)
        finally:
            await shards.close()


async def _told(results: asyncio.Future[list[Counts]]) -> list[Counts]:
    try:
        return await results
    except TimeoutError:
        raise
    except Exception as error:
        raise DemoFailed(f"a workflow failed with {type(error).__qualname__}: {error}") from error
