"""The files of one embedded server: its data directory, its password, its settings.

``initdb`` takes seconds, a copy of its result does not: so it runs once for each version, into the cache, and a
server's data begin as a copy. Copies share Postgres' *system identifier*: it does not tell embedded servers apart.

Over the Unix socket, which lies in a directory that only its owner can enter, nobody is asked for a password; over TCP
everybody is, because every user of the machine can reach the loopback interface.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from sharded_wf.dev.binaries import Binaries, cache_lock
from sharded_wf.dev.places import Account, cache_home, path_digest, run_as
from sharded_wf.errors import EmbeddedServerError

SUPERUSER = "wf"
PASSWORD_FILE = "password"
DATA = "data"
TEMPLATE_FORMAT = 1
"""Raised when what goes into a template changes, so that old ones are not used."""

DEFAULT_SETTINGS: Mapping[str, str] = {
    "max_connections": "200",
    "shared_buffers": "128MB",
    "min_wal_size": "64MB",
    "max_wal_size": "1GB",
    "autovacuum": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %d ",
}

# Nothing is relaxed for speed: a test or a benchmark on a server that forgets would prove nothing.
DURABLE_SETTINGS: Mapping[str, str] = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


def create_data(directory: Path, binaries: Binaries, account: Account, *, kept: bool) -> None:
    """Put a fresh data directory and its password into ``directory``, which exists; whole or not at all. Data that are
    kept are also on the disk when this returns, as initdb's would be."""
    template = _template(binaries, account)
    scratch = directory / f"{DATA}.new"
    shutil.rmtree(scratch, ignore_errors=True)
    # cp, not shutil: it clones blocks where the file system can, and keeps the owner.
    command = ["cp", "-a", str(template / DATA), str(scratch)]
    copied = subprocess.run(command, capture_output=True, text=True, check=False)
    if copied.returncode:
        raise EmbeddedServerError(f"can't copy the data directory to {directory}: {copied.stderr.strip()}")
    if kept:
        synced = run_as(account, [binaries.program("initdb"), "--sync-only", f"--pgdata={scratch}"])
        if synced.returncode:
            raise EmbeddedServerError(f"can't write the data to the disk: {synced.stderr.strip()}")
    shutil.copy(template / PASSWORD_FILE, directory / PASSWORD_FILE)
    scratch.rename(directory / DATA)


def _template(binaries: Binaries, account: Account) -> Path:
    identity = f"{TEMPLATE_FORMAT}:{binaries.banner}:{account.uid}"
    target = cache_home() / f"data-{binaries.major}-{path_digest(Path(identity))}"
    with cache_lock(target.name):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=cache_home()) as scratch:
                _initialise(Path(scratch), binaries, account)
                os.chmod(scratch, 0o711 if account.is_other else 0o700)
                made = Path(scratch) / "template"
                made.rename(target)
    return target


def _initialise(scratch: Path, binaries: Binaries, account: Account) -> None:
    """Run initdb, which wants to own what it writes to, and reads the password from a file."""
    template = scratch / "template"
    template.mkdir(mode=0o711)
    password = secrets.token_urlsafe(24)
    handed_over = scratch / PASSWORD_FILE
    for path in (template / PASSWORD_FILE, handed_over):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(password)
    data = template / DATA
    data.mkdir(mode=0o700)
    if account.is_other:
        os.chmod(scratch, 0o711)
        os.chmod(template, 0o711)
        for path in (data, handed_over):
            os.chown(path, account.uid, account.gid)
    command = [binaries.program("initdb"), f"--pgdata={data}", f"--username={SUPERUSER}", f"--pwfile={handed_over}"]
    command += ["--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
    made = run_as(account, command)
    if made.returncode:
        said = made.stderr.strip() or made.stdout.strip()
        if "could not look up effective user" in said:
            said += "\nPostgreSQL wants its user to have a name: give it one in /etc/passwd, or use another user"
        raise EmbeddedServerError(f"initdb failed as {account.name}: {said}")


def write_settings(data: Path, account: Account, settings: Mapping[str, str]) -> None:
    """Write ``postgresql.conf`` anew from our defaults, the given settings, and what is never relaxed.

    Raises:
        EmbeddedServerError: a setting would make commits less than durable.
    """
    for name, value in DURABLE_SETTINGS.items():
        if settings.get(name, value) != value:
            raise EmbeddedServerError(f"{name} stays {value}: embedded servers are as durable as any other")
    lines = ["# Written by sharded_wf at every start of this server; changes made here are lost."]
    for name, value in {**DEFAULT_SETTINGS, **settings, **DURABLE_SETTINGS}.items():
        escaped = value.replace("\\", "\\\\").replace("'", "''")
        lines.append(f"{name} = '{escaped}'")
    scratch = data / "postgresql.conf.new"
    scratch.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if account.is_other:
        os.chown(scratch, account.uid, account.gid)
    scratch.chmod(0o600)
    scratch.rename(data / "postgresql.conf")
