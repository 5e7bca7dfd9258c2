"""What a check is: of one shard, or of the cluster as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sharded_wf.cluster.shard_map import Placement, live_slots
from sharded_wf.config import ClusterConfig
from sharded_wf.doctor import commands
from sharded_wf.doctor.finding import Finding
from sharded_wf.doctor.look import Facts, Look


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is known of all shards when each was examined. ``facts``: of those that answered and are part of the
    cluster; ``silent``: why the others did not, by shard. ``whole``: all shards of the configuration were asked."""

    config: ClusterConfig
    facts: Mapping[str, Facts]
    silent: Mapping[str, str]
    version: str
    whole: bool = True

    @property
    def newest(self) -> dict[int, Placement]:
        """The newest row of the map for each slot that there is or was."""
        newest: dict[int, Placement] = {}
        for facts in self.facts.values():
            for row in facts.record.placements:
                if row.slot not in newest or row.epoch > newest[row.slot].epoch:
                    newest[row.slot] = row
        return newest

    @property
    def placement(self) -> dict[int, str]:
        """The slots that there are, and the shards where they lie, by the newest map. (Of a slot that was split, the
        rows stay.)"""
        newest = self.newest
        base = max((one.record.identity.slots for one in self.facts.values() if one.record.identity), default=0)
        if any(slot not in newest for slot in range(base)):
            return {slot: row.shard for slot, row in newest.items()}  # its making was interrupted
        return live_slots(newest.values(), base)

    def cli(self, *words: str) -> str:
        """``sharded-wf …`` on this cluster."""
        return commands.cli(self.config, *words)

    def psql(self, shard: str, *statements: str) -> str:
        """The command that runs these statements on a shard."""
        return commands.psql(self.config.shard(shard), *statements)


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """A check of one shard. ``name``: also its section in the runbook."""

    name: str
    run: Callable[[Look], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class ClusterCheck:
    """A check that needs to know all shards."""

    name: str
    run: Callable[[Fleet], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Family:
    """Checks of one subject. ``says``: what holds if none of them finds anything."""

    name: str
    says: str
    checks: tuple[ShardCheck | ClusterCheck, ...]
