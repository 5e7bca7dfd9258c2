"""A fixed share of CPU for a server: a control group with a quota, of version 1 or 2, whichever this machine has.

A quota, not a weight: each server gets so much and no more, however idle the machine is. So eight servers on one
machine behave as eight small machines do, as far as CPU goes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sharded_wf.dev.supervisor import process_family
from sharded_wf.errors import BenchFailed

ROOT = Path("/sys/fs/cgroup")
PERIOD_MIN_US = 20_000
"""Short: a server that has used up its share waits for the next period, and should not wait long."""
QUOTA_MIN_US = 1_000  # the kernel's own minimum
REMOVE_ATTEMPTS = 50


def period_and_quota_us(share: float) -> tuple[int, int]:
    """Period and quota for a share of one core, both in microseconds."""
    period = max(PERIOD_MIN_US, round(QUOTA_MIN_US / share))
    return period, max(QUOTA_MIN_US, round(period * share))


@dataclass(frozen=True)
class Hierarchy:
    """Where groups are made, and how a quota is written there."""

    directory: Path
    version: int

    def make(self, name: str, share: float) -> Path:
        group = self.directory / name
        group.mkdir()
        period, quota = period_and_quota_us(share)
        if self.version == 1:
            (group / "cpu.cfs_period_us").write_text(f"{period}\n")
            (group / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        else:
            (group / "cpu.max").write_text(f"{quota} {period}\n")
        return group


def find_hierarchy(root: Path = ROOT) -> Hierarchy:
    """Where this process may make groups with a quota. ``BenchFailed`` says why it may not, and what to do."""
    if (root / "cpu" / "cpu.cfs_quota_us").exists() or (root / "cpu" / "cgroup.procs").exists():
        return _writable(Hierarchy(root / "cpu", 1))
    if (root / "cgroup.controllers").exists():
        own = _own_group_v2(root)
        if "cpu" not in (own / "cgroup.subtree_control").read_text().split():
            with contextlib.suppress(OSError):
                (own / "cgroup.subtree_control").write_text("+cpu\n")
        if "cpu" not in (own / "cgroup.subtree_control").read_text().split():
            raise BenchFailed(
                f"no quota can be set: {own} does not hand the cpu controller down; run as root, or in a scope that "
                "does: systemd-run --scope -p Delegate=yes sharded-wf bench scale"
            )
        return _writable(Hierarchy(own, 2))
    raise BenchFailed(f"no quota can be set: this machine has no control groups for CPU below {root}")


def _own_group_v2(root: Path) -> Path:
    """The group to make children of: our own's parent, as a group with processes may have no children with quotas."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            own = root / line[3:].strip("/")
            return own if own == root else own.parent
    return root


def _writable(hierarchy: Hierarchy) -> Hierarchy:
    if not os.access(hierarchy.directory, os.W_OK):
        raise BenchFailed(
            f"no quota can be set: {hierarchy.directory} is not writable by this user (control groups version "
            f"{hierarchy.version}); run as root, or have it delegated to you"
        )
    return hierarchy


@contextmanager
def held_to(share: float, roots: dict[str, int]) -> Generator[None]:
    """While the block runs, each of these processes (by name) and all its descendants have ``share`` of one core
    together. Raises ``BenchFailed`` if the machine does not allow it."""
    hierarchy = find_hierarchy()
    groups: list[Path] = []
    try:
        for name, root in roots.items():
            group = _made(hierarchy, f"sharded-wf-bench-{os.getpid()}-{name}", share)
            groups.append(group)
            _move(group, root)
        yield
    finally:
        for group in groups:
            _remove(hierarchy, group)


def _made(hierarchy: Hierarchy, name: str, share: float) -> Path:
    try:
        return hierarchy.make(name, share)
    except OSError as error:
        with contextlib.suppress(OSError):
            (hierarchy.directory / name).rmdir()
        raise BenchFailed(f"no quota can be set in {hierarchy.directory}: {error.strerror}") from None


def _move(group: Path, root: int) -> None:
    """Move a process with its descendants; again until none is outside, as it may start some meanwhile."""
    while True:
        inside = set(map(int, (group / "cgroup.procs").read_text().split()))
        outside = [pid for pid in process_family(root) if pid not in inside]
        if not outside:
            return
        for pid in outside:
            with contextlib.suppress(ProcessLookupError):
                (group / "cgroup.procs").write_text(f"{pid}\n")


def _remove(hierarchy: Hierarchy, group: Path) -> None:
    """Whoever is still in it goes back to where groups are made; without its quota it ends faster."""
    for _ in range(REMOVE_ATTEMPTS):
        with contextlib.suppress(OSError):
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (hierarchy.directory / "cgroup.procs").write_text(f"{pid}\n")
            group.rmdir()
            return
        time.sleep(0.1)
