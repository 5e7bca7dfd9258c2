"""The bare loop as a process beside the run: the ceiling of this machine, at this moment, on the same server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg

from sharded_wf.errors import BenchFailed


def run_bare_loop(
    dsn: str, *, seconds: float, steps: int, slots: int, executors: int, postmaster: int | None = None
) -> dict[str, Any]:
    """What the bare loop prints, run in this scratch database, which is empty again afterwards. ``postmaster``: of its
    server, if that runs on this machine, to have its CPU time as well."""
    script = Path(__file__).with_name("ceiling.py")
    command = [
        sys.executable, str(script), dsn, "--seconds", str(seconds), "--steps", str(steps),
        "--slots", str(slots), "--executors", str(executors),
    ]  # fmt: skip
    if postmaster is not None:
        command += ["--postmaster", str(postmaster)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise BenchFailed(f"the bare loop ended with {answer.returncode}; it said at last:\n{answer.stderr[-2000:]}")
    _clear(dsn, slots)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def _clear(dsn: str, slots: int) -> None:
    """What it leaves would else be vacuumed while the engine is measured."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("set client_min_messages = warning")
        for slot in range(slots):
            conn.execute(f"drop schema if exists ceiling_{slot:04d} cascade".encode())
