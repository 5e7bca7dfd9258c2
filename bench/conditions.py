"""Under which conditions a figure was measured: without them it says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psycopg

SETTINGS = (
    "fsync", "synchronous_commit", "full_page_writes", "wal_level", "wal_sync_method", "commit_delay", "shared_buffers",
    "max_wal_size", "max_connections", "checkpoint_timeout", "autovacuum", "jit",
)  # fmt: skip
_PACKAGES = ("sharded-wf", "psycopg", "msgspec", "uvloop")


def conditions_of(dsn: str) -> dict[str, dict[str, str]]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        rows = conn.execute(
            "select name, current_setting(name) from pg_settings where name = any(%s) "
            "order by array_position(%s, name)",
            (list(SETTINGS), list(SETTINGS)),
        ).fetchall()
        server = conn.info.parameter_status("server_version") or str(conn.info.server_version)
    return {
        "machine": _machine(),
        "versions": {"PostgreSQL": server, "Python": platform.python_version(), **_packages()},
        "settings": {str(name): str(value) for name, value in rows},
        "run": {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "command": " ".join(["bench", *sys.argv[1:]]),
        },
    }


def _machine() -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"cores": str(cores), "system": f"{platform.system()} {platform.release()} {platform.machine()}"}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        memory = Path("/proc/meminfo").read_text().split()[1]
    except OSError:
        return found
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    if models:
        found["processor"] = models[0]
    return {**found, "memory": f"{int(memory) / 1024**2:.1f} GiB"}


def _packages() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _commit() -> str:
    """The checkout's commit, with a plus if files differ from it; of an installed package there is none."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    if "." in (__package__ or ""):
        return "an installed package"
    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
