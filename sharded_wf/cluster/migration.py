"""Migrating the whole fleet: what is to be done, and doing it.

Two passes: what suits the processes that run (``pre``), on all shards at once; and then, when every shard has it and
no executor anywhere runs code that doesn't know the rest, what they could not work with (``post``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sharded_wf.cluster import citus
from sharded_wf.cluster.fanout import Answers, ask_each
from sharded_wf.cluster.fleet import NOT_YET, ExecutorStatus, read_executors
from sharded_wf.cluster.shard_map import check_identity, read_record
from sharded_wf.cluster.timelines import ask_primaries
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import ClusterNotInitialized, MigrationRefused
from sharded_wf.limits import STATUS_DEADLINE_SECONDS
from sharded_wf.postgres.connect import Connection
from sharded_wf.postgres.migrate import (
    Moment,
    Phase,
    SchemaStep,
    migrate,
    moving_slots,
    pending,
    split_phases,
    still_there,
)

Report = Callable[[str, SchemaStep, Moment], None]
"""Hears of each step: the shard's name, the step, how far it is."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What ``migrate_fleet`` would do on one shard. ``first``: while everything runs; ``rest``: when no process runs
    that does not know it. ``old``: live executors that don't. ``moving``: unfinished moves and splits, which come
    before."""

    first: tuple[SchemaStep, ...]
    rest: tuple[SchemaStep, ...]
    old: tuple[ExecutorStatus, ...]
    moving: tuple[str, ...]

    @property
    def steps(self) -> tuple[SchemaStep, ...]:
        """All of them, in their order."""
        return self.first + self.rest


def plan_fleet(config: ClusterConfig) -> Answers[ShardPlan]:
    """What is to be done on every shard; nothing is written. A shard that is away, or is none of this cluster's, fails
    as in ``migrate_fleet``."""

    def look(shard: ShardConfig, conn: Connection) -> ShardPlan:
        _check_member(config, shard, conn)
        first, rest = split_phases(pending(conn))
        old = [one for one in read_executors(conn) if one.live and any(not one.knows(step) for step in rest)]
        moving = moving_slots(conn) if first or rest else []
        return ShardPlan(tuple(first), tuple(rest), tuple(old), tuple(moving))

    config = citus.resolve(config)
    answers, _ = ask_primaries(config.shards, look, purpose="migrate", deadline_seconds=STATUS_DEADLINE_SECONDS)
    return answers


def migrate_fleet(
    config: ClusterConfig,
    phase: Phase = "all",
    *,
    force: bool = False,
    report: Report = lambda _shard, _step, _moment: None,
) -> Answers[list[SchemaStep]]:
    """Apply what is pending on every shard at once; return what was applied, and why not, by shard. ``force``: end the
    leases of executors that are too old for what is applied. ``report`` is called from the shards' threads.

    A shard that is away or blocked does not keep the others from what suits old processes, too: run it again for those.
    The rest begins when all shards have that. Databases that are not what the configuration says they are fail with
    ``ClusterMismatch``, those that are no shard yet with ``ClusterNotInitialized``, untouched.
    """

    config = citus.resolve(config)

    def bring_up(phase: Phase) -> Answers[list[SchemaStep]]:
        def work(shard: ShardConfig, conn: Connection) -> list[SchemaStep]:
            def told(step: SchemaStep, moment: Moment) -> None:
                report(shard.name, step, moment)

            _check_member(config, shard, conn)
            if notes is not None:
                return citus.make_control(conn, notes, phase, force=force, report=told)
            return migrate(conn, phase=phase, force=force, report=told)

        notes, applied = None, None
        if config.coordinator is not None:
            # The slots' tables first, and through the coordinator; then the nodes hear which migrations these have.
            applied = citus.migrate_slots(
                config, phase, force=force, report=lambda step, moment: report(citus.COORDINATOR, step, moment)
            )
            notes = citus.read_notes(config)
        answers = ask_each(config.shards, work, purpose="migrate", deadline_seconds=None)
        if applied is not None:
            answers.given[citus.COORDINATOR] = applied
        return answers

    # No old primary gets the migrations that the new one needs.
    plans = plan_fleet(config)
    answers = bring_up("pre")
    waiting = [name for name, plan in plans.given.items() if plan.rest]
    if phase == "pre" or not waiting:
        return answers
    try:
        _check_rest(answers, plans, force=force)
    except MigrationRefused as refused:
        answers.failed.update({name: refused for name in waiting if name not in answers.failed})
        return answers
    if config.coordinator is not None and (closed := citus.announce_posts(config, force=force)):
        answers.failed.update(closed)
        return answers
    more = bring_up("all")
    for name, steps in more.given.items():
        answers.given[name] += steps
    answers.failed.update(more.failed)
    return answers


def _check_rest(answers: Answers[list[SchemaStep]], plans: Answers[ShardPlan], *, force: bool) -> None:
    """Whether ``post`` migrations may begin. An executor of some shards delivers messages to the others as well, so one
    that is too old anywhere is too old for all."""
    label = next(plan.rest[0] for plan in plans.given.values() if plan.rest).label
    if answers.failed:
        away = ", ".join(answers.failed)
        raise MigrationRefused(f"{label} waits until every shard has what comes before it; not yet: {away}")
    old = sorted({f"{one.executor} ({one.version})" for plan in plans.given.values() for one in plan.old})
    if old and not force:
        raise MigrationRefused(still_there(old, label))


def _check_member(config: ClusterConfig, shard: ShardConfig, conn: Connection) -> None:
    identity = read_record(conn).identity
    if identity is None:
        raise ClusterNotInitialized(f"shard {shard.name!r} is {NOT_YET}")
    check_identity(config, shard, identity)
