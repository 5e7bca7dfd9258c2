"""What is still open on which version of an app, and who could run it: to know before old executors are stopped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from sharded_wf.cluster.fanout import ask_each
from sharded_wf.cluster.fleet import ExecutorStatus, read_executors
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.limits import VERSIONS_DEADLINE_SECONDS
from sharded_wf.model.status import Status
from sharded_wf.postgres.connect import Connection
from sharded_wf.postgres.migrate import slots_present
from sharded_wf.postgres.queries import load
from sharded_wf.routing import slot_schema

_FLEET = load("fleet")
_MAP = load("shard_map")


@dataclass(frozen=True, slots=True)
class OpenVersion:
    """The open workflows of one version of an app; of one function of it, if that is pinned.

    ``version`` is None for an app without one. ``oldest_seconds``: how long ago the oldest was created (None: nothing
    is open). ``executors``: who could run it now. ``stranded``: how many lie on a shard, or in a queue, where nobody
    could.
    """

    app: str
    version: str | None
    function: str | None
    pending: int
    running: int
    parked: int
    oldest_seconds: float | None
    executors: tuple[str, ...]
    stranded: int

    @property
    def open(self) -> int:
        """How many have not ended."""
        return self.pending + self.running + self.parked


@dataclass(frozen=True, slots=True)
class _Group:
    """Open workflows of one slot that are alike."""

    capability: str
    queue: str
    status: Status
    count: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class _Found:
    groups: tuple[_Group, ...]
    executors: tuple[ExecutorStatus, ...]


def open_versions(config: ClusterConfig) -> tuple[OpenVersion, ...]:
    """Ask every shard. Blocks; each slot's table of workflows is read once. Raises ``ShardUnavailable`` if a shard is
    away: a count with holes would say that nothing is open where something is."""
    answers = ask_each(config.shards, _inspect, purpose="versions", deadline_seconds=VERSIONS_DEADLINE_SECONDS)
    return _summed(answers.all_or_raise().values())


def _inspect(_shard: ShardConfig, conn: Connection) -> _Found:
    groups: list[_Group] = []
    for slot in slots_present(conn):
        schema = slot_schema(slot)
        if not any(row[3] for row in conn.execute(_MAP["read_fence"].on(schema)).fetchall()):
            continue
        rows = cast(list[tuple[str, str, int, int, float]], conn.execute(_FLEET["count_open"].on(schema)).fetchall())
        groups += [_Group(capability, queue, Status(status), n, age) for capability, queue, status, n, age in rows]
    return _Found(tuple(groups), tuple(one for one in read_executors(conn) if one.live and not one.isolated))


def _summed(found: Iterable[_Found]) -> tuple[OpenVersion, ...]:
    shards = list(found)
    names = {group.capability for shard in shards for group in shard.groups}
    names |= {
        name for shard in shards for one in shard.executors for name in one.capabilities if not _is_function(name)
    }
    return tuple(_version(name, shards) for name in sorted(names))


def _is_function(capability: str) -> bool:
    """Whether this is the lane of a function by name, in which work waits that an executor has put back."""
    return "/" in capability and "@" not in capability


def _version(capability: str, shards: list[_Found]) -> OpenVersion:
    counts = dict.fromkeys(Status, 0)
    oldest: float | None = None
    able: set[str] = set()
    stranded = 0
    for shard in shards:
        able |= {one.executor for one in shard.executors if capability in one.capabilities}
        for group in shard.groups:
            if group.capability == capability:
                counts[group.status] += group.count
                oldest = max(oldest or 0.0, group.oldest_seconds)
                if not any(one.can_run(capability, group.queue) for one in shard.executors):
                    stranded += group.count
    app, _, rest = capability.partition("@")
    version, _, function = rest.partition("/")
    return OpenVersion(
        app, version or None, function or None, counts[Status.PENDING], counts[Status.RUNNING], counts[Status.PARKED],
        oldest, tuple(sorted(able)), stranded,
    )  # fmt: skip
