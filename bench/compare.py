"""sharded_wf beside the bare loop, DBOS, PgQueuer and procrastinate: same server, same run, alternating rounds.

Without a DSN `bench compare` starts an embedded PostgreSQL 18. fsync and synchronous_commit must be on. Each contender
gets a fresh database for each window, and processes of its own; every second round goes backwards, so that a drift of
the machine, or what one leaves behind in the caches, hits all. Peers are installed with the extra ``bench-peers``; who
is not is named. See peers/README.md.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from sharded_wf.errors import BenchFailed

from .comparison import Comparison, Described, Measured, draw, make_markdown
from .peers import CONTENDERS, find_version
from .peers.contender import WARM_UP_SECONDS, Contender, Process, Shape, Told, Window

SERVER_SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "8GB", "max_connections": "300"}
SETTINGS_SHOWN = (
    "fsync", "synchronous_commit", "full_page_writes", "wal_level", "shared_buffers", "max_wal_size", "max_connections",
)  # fmt: skip
SETTINGS_ON = ("fsync", "synchronous_commit")
DATABASE = "compare_scratch"
FIRST_RESULT_SECONDS_MAX = 60.0
POLL_SECONDS = 0.2
GONE_SECONDS_MAX = 30.0


class CompareError(BenchFailed):
    """A comparison that cannot be made, or a window that gave no figure; the text says why."""


def server_settings(dsn: str) -> dict[str, str]:
    """What the server runs with; refuses one that forgets."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute(
            "select name, current_setting(name) from pg_settings where name = any(%s)", (list(SETTINGS_SHOWN),)
        ).fetchall()
        found = {"PostgreSQL": str(connection.info.server_version // 10_000)} | {str(k): str(v) for k, v in rows}
        found["PostgreSQL"] = connection.info.parameter_status("server_version") or found["PostgreSQL"]
    for name in SETTINGS_ON:
        if found[name] != "on":
            raise CompareError(f"The server has {name} = {found[name]}: set it to on, else commits are not durable.")
    return found


def describe_machine() -> dict[str, str]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
    }


def ask(connection: psycopg.Connection[Any]) -> float:
    """The server's clock."""
    row = connection.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
    assert row is not None
    return float(row[0])


def watch(processes: list[Process]) -> None:
    for process in processes:
        if process.exitcode is not None:
            raise CompareError(f"a process ended with exit code {process.exitcode}; its words are above")


def wait_first_result(contender: Contender, dsn: str, shape: Shape, processes: list[Process]) -> None:
    """Imports, connections and migrations are not measured: the warm-up begins with the first finished workflow."""
    deadline = time.monotonic() + FIRST_RESULT_SECONDS_MAX
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not contender.count(connection, shape, Window(0, 0)).finished_in_all:
            watch(processes)
            if time.monotonic() > deadline:
                raise CompareError(f"nothing was finished within {FIRST_RESULT_SECONDS_MAX:g} s")
            time.sleep(POLL_SECONDS)


def wait(seconds: float, processes: list[Process]) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, POLL_SECONDS))
        watch(processes)


def wait_gone(connection: psycopg.Connection[Any]) -> None:
    """Until the last of the killed processes' backends has ended."""
    deadline = time.monotonic() + GONE_SECONDS_MAX
    others = (
        "select count(pg_terminate_backend(pid)) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
    )
    while (row := connection.execute(others).fetchone()) and row[0]:
        if time.monotonic() > deadline:
            raise CompareError(f"backends were still there {GONE_SECONDS_MAX:g} s after their processes")
        time.sleep(POLL_SECONDS)


def measure(contender: Contender, dsn: str, shape: Shape, seconds: float, number: int) -> Measured:
    """One window, in a fresh database of the server ``dsn``."""
    with psycopg.connect(dsn, autocommit=True) as admin:
        name = sql.Identifier(DATABASE)
        admin.execute(sql.SQL("drop database if exists {} with (force)").format(name))
        admin.execute(sql.SQL("create database {}").format(name))
        try:
            return measure_in(contender, make_conninfo(dsn, dbname=DATABASE), shape, seconds, number)
        finally:
            admin.execute(sql.SQL("drop database if exists {} with (force)").format(name))
            with suppress(psycopg.errors.InsufficientPrivilege):
                admin.execute("checkpoint")  # nobody pays for another one's pages


def measure_in(contender: Contender, dsn: str, shape: Shape, seconds: float, number: int) -> Measured:
    contender.prepare(dsn, shape)
    told = Told()
    processes = contender.processes(dsn, shape, told)
    with psycopg.connect(dsn, autocommit=True) as connection:
        try:
            for process in processes:
                process.start()
            wait_first_result(contender, dsn, shape, processes)
            wait(min(WARM_UP_SECONDS, seconds), processes)
            begin = ask(connection)
            wait(seconds, processes)
            window = Window(begin, ask(connection))
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()
        wait_gone(connection)
        count = contender.count(connection, shape, window)
    if contender.has_steps and count.steps_in_all < count.finished_in_all * shape.steps:
        raise CompareError(
            f"{count.finished_in_all} workflows of {shape.steps} steps were finished, but only {count.steps_in_all} "
            f"steps are recorded"
        )
    elapsed = window.end - window.begin
    rate = min(count.started, count.finished) / elapsed
    return Measured(
        contender.name, shape.steps, number, round(elapsed, 3), count.started, count.finished, round(rate, 1)
    )


def compare(
    dsn: str,
    *,
    seconds: float = 10.0,
    rounds: int = 3,
    steps: Sequence[int] = (0, 1, 3),
    executors: int = 2,
    slots: int = 48,
    only: Sequence[str] = (),
    contenders: Sequence[Contender] = CONTENDERS,
    say: Callable[[str], None] = print,
) -> Comparison:
    """Measures everybody on the server ``dsn``, where it makes and drops the database ``compare_scratch``.

    ``seconds`` are a window's. ``only`` names those to measure (by default all). ``say`` takes one line of progress at
    a time. Raises ``CompareError`` if the server's commits are not durable, or a name is unknown.
    """
    known = {contender.name for contender in contenders}
    if strangers := set(only) - known:
        raise CompareError(f"No such contender: {', '.join(sorted(strangers))}. There are: {', '.join(sorted(known))}.")
    settings = server_settings(dsn)
    chosen = [contender for contender in contenders if not only or contender.name in only]
    versions = {contender.name: find_version(contender) for contender in chosen}
    for contender in chosen:
        if versions[contender.name] is None:
            say(
                f"LEFT OUT: {contender.name} needs {', '.join(contender.packages)}: "
                "pip install 'sharded-wf[bench-peers]'"
            )
    present = [contender for contender in chosen if versions[contender.name] is not None]
    measured: list[Measured] = []
    failed: list[str] = []
    for number in range(rounds):
        for count in steps:
            for contender in present if number % 2 == 0 else reversed(present):
                if count and not contender.has_steps:
                    continue
                try:
                    one = measure(contender, dsn, Shape(count, executors, slots), seconds, number)
                except (CompareError, psycopg.Error) as error:
                    failed.append(f"{contender.name}, {count} steps, round {number + 1}: {error}.")
                    say(f"FAILED: {failed[-1]}")
                    continue
                measured.append(one)
                say(f"round {number + 1}/{rounds}  {count} steps  {contender.name:<14} {one.per_second:>10,.0f} /s")
    return Comparison(
        machine=describe_machine(),
        postgres=settings,
        seconds=seconds,
        rounds=rounds,
        executors=executors,
        slots=slots,
        steps=tuple(steps),
        contenders=tuple(
            Described(c.name, versions[c.name] or "", c.unit, c.configuration, c.not_like_for_like) for c in present
        ),
        left_out=tuple(contender.name for contender in chosen if versions[contender.name] is None),
        failed=tuple(failed),
        measured=tuple(measured),
    )


def write(comparison: Comparison, json: Path | None, markdown: Path | None, png: Path | None) -> None:
    """Writes what was asked for."""
    if json:
        json.write_bytes(msgspec.json.format(msgspec.json.encode(comparison), indent=2) + b"\n")
    if markdown:
        markdown.write_text(make_markdown(comparison))
    if png:
        draw(comparison, png)
