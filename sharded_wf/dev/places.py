"""Whose processes the embedded servers are, and where their files lie.

Postgres refuses to run as root. So when root starts an embedded server, its processes and data belong to an
unprivileged account, and every file that it needs must lie where that account gets to. Permissions of directories that
exist are never changed to make that so: files are put elsewhere instead.

Each user has directories of their own, so that it makes no difference who came first on a machine:

* the *cache*: initialised data directories to copy from, and binaries when they must be copied. Losing it costs time;
* the *runtime home*: sockets, and the data of servers that don't outlive their owner. It is below ``/var/tmp``, because
  ``/tmp`` is often memory, where fsync means nothing, and because a path to a Unix socket must be short.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pwd
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sharded_wf.errors import EmbeddedServerError

RUNTIME_PARENT = Path("/var/tmp")
ROOT_CACHE = Path("/var/cache/sharded-wf")
ROOT_DATA = Path("/var/lib/sharded-wf")

# "nobody" comes before "postgres": a superuser of an embedded server can run programs as its account, and must not so
# get hold of the machine's own Postgres.
UNPRIVILEGED_NAMES = ("nobody", "postgres", "daemon")


@dataclass(frozen=True)
class Account:
    """The operating system's account that the Postgres processes run as."""

    uid: int
    gid: int
    name: str

    @property
    def is_other(self) -> bool:
        """Whether this is another account than the one that this process runs as."""
        return self.uid != os.geteuid()


@functools.cache
def server_account() -> Account:
    """The account for embedded servers: our own, or an unprivileged one if we are root.

    Raises:
        EmbeddedServerError: we are root and the machine has no unprivileged account that we know by name.
    """
    uid = os.geteuid()
    if uid != 0:
        return Account(uid, os.getegid(), str(uid))
    for name in UNPRIVILEGED_NAMES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(entry.pw_uid, entry.pw_gid, name)
    raise EmbeddedServerError(
        f"Postgres can't run as root, and none of the accounts {', '.join(UNPRIVILEGED_NAMES)} exists: "
        "create one of them (useradd --system postgres), or run as another user"
    )


def run_as(account: Account, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a short program as the account, with its output captured; never raises for its exit code.

    The environment is bare: variables such as ``PGDATA`` or ``PGOPTIONS`` of the caller must not steer our servers.

    Raises:
        EmbeddedServerError: the program can't be started as this account.
    """
    try:
        return subprocess.run(
            command,
            cwd="/",
            env=bare_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            # None leaves them as they are: only root may change them.
            user=account.uid if account.is_other else None,
            group=account.gid if account.is_other else None,
            extra_groups=[] if account.is_other else None,
        )
    except OSError as error:
        raise EmbeddedServerError(f"can't run {command[0]} as {account.name}: {error}") from error


def bare_environment() -> dict[str, str]:
    """What Postgres' programs get of our environment: the paths, and nothing that changes what they do."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    return {"PATH": os.defpath, **kept, "LC_ALL": "C"}


def can_enter(account: Account, directory: Path) -> bool:
    """Whether the account can get into the directory; asked of the system, which also knows ACLs and mounts."""
    return run_as(account, ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(directory)]).returncode == 0


@functools.cache
def runtime_home() -> Path:
    """This user's directory for sockets and temporary data, short and reachable by the server account.

    Raises:
        EmbeddedServerError: no such directory can be made.
    """
    # Anyone may write to the parent, so the name may be taken by somebody else; then the next one is ours.
    names = [f"sharded-wf-{os.geteuid()}" + (f"-{n}" if n else "") for n in range(10)]
    for name in names:
        if _is_ours(RUNTIME_PARENT / name):
            return RUNTIME_PARENT / name
    raise EmbeddedServerError(f"can't make a directory such as {RUNTIME_PARENT / names[0]} for sockets and data")


@functools.cache
def cache_home() -> Path:
    """This user's cache directory, reachable by the server account."""
    if os.geteuid() == 0:
        wanted = ROOT_CACHE
    else:
        wanted = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "sharded-wf"
    fallback = runtime_home() / "cache"
    for directory in (wanted, fallback):
        if directory.is_absolute() and _is_ours(directory) and can_enter(server_account(), directory):
            return directory
    raise EmbeddedServerError(f"can't make a cache directory, neither {wanted} nor {fallback}")


def _is_ours(directory: Path) -> bool:
    """Make the directory if it is missing; tell whether it is ours alone to write."""
    # Root's directories let the server account through, but show it nothing.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=mode)
        directory.chmod(mode)  # whatever the umask
    except FileExistsError:
        pass
    except OSError:
        return False
    found = directory.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def reachable_directory(preferred: Path | str) -> Path:
    """The directory for data that are kept: the preferred one, unless root's server account can't get there.

    Then (a project below ``/root``, say) it is one below ``/var/lib/sharded-wf`` that belongs to the preferred path
    for good. The directory itself is not made.
    """
    wanted = Path(preferred).absolute()
    account = server_account()
    if not account.is_other:
        return wanted
    existing = next(parent for parent in (wanted, *wanted.parents) if parent.exists())
    if can_enter(account, existing):
        return wanted
    home = ROOT_DATA if _is_ours(ROOT_DATA) and can_enter(account, ROOT_DATA) else runtime_home()
    return home / f"{wanted.name.lstrip('.') or 'data'}-{path_digest(wanted)}"


def path_digest(path: Path) -> str:
    """A short name that stands for a path, for where the path itself would be too long."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
