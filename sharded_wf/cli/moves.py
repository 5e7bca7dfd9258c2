"""``sharded-wf shards``, the commands that change where slots lie: add, remove, drain, move, rebalance, verify.

Each shows its plan before it acts (``--dry-run`` ends there), asks unless it was told ``--yes``, and shows how far it
is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from psycopg.conninfo import conninfo_to_dict
from rich.text import Text

from sharded_wf.cli.options import ClusterOption, DryRun, JsonOption, Yes, find_cluster
from sharded_wf.cli.output import confirm, console, print_json, ranges, table
from sharded_wf.cli.resharding import Force, FullSpeed, Resume, Undo, bars, print_outcome, settle
from sharded_wf.cluster.directory import load_map
from sharded_wf.config import ClusterConfig, ShardConfig
from sharded_wf.errors import ConfigError, MoveRefused
from sharded_wf.limits import MOVE_PACE_FACTOR
from sharded_wf.reshard import plan
from sharded_wf.reshard.checkup import verify_slot
from sharded_wf.reshard.citus import rebalancing
from sharded_wf.reshard.fleet import Wish, check_wishes, move_all, unfinished_moves
from sharded_wf.reshard.members import (
    add_shards,
    check_removable,
    file_of,
    newcomers,
    remove_shard,
    with_shard,
    write_shard,
)

_SLOTS = frozenset({"gives", "takes"})
_ON_CITUS = "the shards are the nodes of a Citus cluster:"


def add(
    shard: Annotated[str | None, typer.Argument(help="The name of the new shard. Default: all that are new.")] = None,
    cluster: ClusterOption = None,
    dsn: Annotated[str | None, typer.Option(help="Its DSN, to be written into shards.toml.")] = None,
    dsn_env: Annotated[str | None, typer.Option(help="The same, with the environment variable that holds it.")] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Let new shards join the cluster, without slots; `rebalance` then gives them their share. Safe to repeat."""
    config = find_cluster(cluster)
    if config.coordinator is not None and (shard is not None or dsn is not None or dsn_env is not None):
        raise ConfigError(
            f"{_ON_CITUS} say so on the coordinator: select citus_add_node('host', 5432); then run, without a name: "
            "sharded-wf shards add"
        )
    wider = config
    if dsn is not None or dsn_env is not None:
        if shard is None:
            raise ConfigError("say what the new shard is called: sharded-wf shards add pg3 --dsn …")
        wider = with_shard(config, shard, dsn=dsn, dsn_env=dsn_env)
    elif shard is not None:
        config.shard(shard)  # an error says what to write
    unnamed = wider != config
    if unnamed:
        file_of(config)
    out, new = console(), newcomers(wider)
    for one in new:
        name = Text(one.shard.name, "bold")
        out.print(Text.assemble(name, f" joins, without slots: PostgreSQL {one.server_version}, {one.shard.address}"))
    if unnamed:
        out.print(Text(f"{config.source} gets a [[shard]] {shard}"))
    if not new and not unnamed:
        out.print(f"every shard of {config.source} is part of the cluster already")
    if dry_run or not (new or unnamed):
        return
    confirm(yes, "Let it join?" if len(new) < 2 else "Let them join?")
    joined = add_shards(wider).joined
    if unnamed and shard is not None:  # last: what can't join is in no file that others read
        write_shard(config, shard, dsn=dsn, dsn_env=dsn_env)
        out.print(Text(f"[[shard]] {shard} is in {config.source} now"))
    for name_joined in joined:
        out.print(Text.assemble((name_joined, "bold"), " has joined, without slots"))
    out.print("next: bring the file to every machine, then sharded-wf shards rebalance")


def remove(
    shard: Annotated[str, typer.Argument(help="The shard; it must hold no slots.")],
    cluster: ClusterOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Let an empty shard leave the cluster. Its database stays; only our control schema goes."""
    config = find_cluster(cluster)
    leases = check_removable(config, shard)
    out = console()
    out.print(Text.assemble((shard, "bold"), f" holds no slots and can leave; {leases} executors will let go of it"))
    if dry_run:
        return
    confirm(yes, "Remove it?")
    remove_shard(config, shard)
    out.print(Text(f"{shard} is no shard any more. Delete its [[shard]] from {config.source}, everywhere."))


def move(
    slots: Annotated[list[int] | None, typer.Argument(help="The slots.", show_default=False)] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="SHARD", help="Where to.", show_default=False)] = None,
    cluster: ClusterOption = None,
    resume: Resume = False,
    undo: Undo = False,
    force: Force = False,
    full_speed: FullSpeed = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Move slots to another shard while they are in use. Can be killed at any moment, and resumed."""
    config = find_cluster(cluster)
    if resume or undo:
        settle(config, slots or [], resume=resume, undo=undo, force=force, dry_run=dry_run, yes=yes)
        return
    if not slots or to is None:
        raise ConfigError("say which slots, and where to: sharded-wf shards move 3 7 --to pg2")
    _carry_out(config, [(slot, to) for slot in dict.fromkeys(slots)], full_speed=full_speed, dry_run=dry_run, yes=yes)


def drain(
    shard: Annotated[str, typer.Argument(help="The shard to empty.")],
    cluster: ClusterOption = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="SHARD", help="All to this one.", show_default=False),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="As for rebalance.", metavar="pg1=2,pg2=1")] = None,
    full_speed: FullSpeed = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Move every slot of a shard to the others, or to another one."""
    if to is not None and weights is not None:
        raise ConfigError("--to or --weights, one of the two")
    config = find_cluster(cluster)
    if config.coordinator is not None:
        host = conninfo_to_dict(config.shard(shard).dsn)
        raise ConfigError(
            f"{_ON_CITUS} say on the coordinator that it shall hold nothing: select citus_set_node_property("
            f"'{host.get('host')}', {host.get('port')}, 'shouldhaveshards', false); then run: "
            "sharded-wf shards rebalance"
        )
    config.shard(shard)
    directory = load_map(config)
    if to is not None:
        slots = directory.shard_map.slots_of(shard)
        _carry_out(config, [(slot, to) for slot in slots], full_speed=full_speed, dry_run=dry_run, yes=yes)
        return
    given = _weights(weights, directory.shards)
    try:
        wanted = plan.drain(directory.shard_map.placement, shard, given)
    except ValueError as error:
        raise MoveRefused(f"shard {shard!r} can't be drained: {error}") from None
    _carry_out(config, wanted, full_speed=full_speed, dry_run=dry_run, yes=yes)


def rebalance(
    cluster: ClusterOption = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="How much of the slots each shard shall have, in proportion. A shard that is not named has the weight "
            "that shards.toml gives it, or 1.",
            metavar="pg1=2,pg2=1",
        ),
    ] = None,
    full_speed: FullSpeed = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Give every shard its share of the slots, with as few moves as can be."""
    config = find_cluster(cluster)
    directory = load_map(config)
    if config.coordinator is not None:
        if weights is not None:
            raise ConfigError(f"--weights: {_ON_CITUS} its rebalancer goes by strategies of its own")
        _carry_out(config, rebalancing(config, directory.shard_map), full_speed=False, dry_run=dry_run, yes=yes)
        return
    given = _weights(weights, directory.shards)
    moving = {one.move.slot for one in unfinished_moves(config)}
    try:
        wanted = plan.rebalance(directory.shard_map.placement, given, fixed=moving)
    except ValueError as error:
        raise ConfigError(f"--weights: {error}") from None
    _carry_out(config, wanted, full_speed=full_speed, dry_run=dry_run, yes=yes)


def verify(
    slot: Annotated[int, typer.Argument(help="The slot.")], cluster: ClusterOption = None, json: JsonOption = False
) -> None:
    """Compare both sides of an unfinished move, or make sure that a slot lives exactly once. Exits with 1 if it is not
    well."""
    config = find_cluster(cluster)
    found = verify_slot(config, slot)
    if json:
        print_json(found)
    else:
        out = console()
        out.print(Text(found.verdict, "green" if found.well else "bold red"))
        if found.checks:
            rows = table(
                "", "table", "source", "target", "changing", numbers=frozenset({"source", "target", "changing"})
            )
            for check in found.checks:
                mark = Text("✓", "bold green") if check.same else Text("✗", "bold red")
                counts = (f"{check.source_rows:,}", f"{check.target_rows:,}", f"{check.changing:,}")
                rows.add_row(mark, Text(check.table), *counts)
            out.print(rows)
    if not found.well:
        raise typer.Exit(1)


def _weights(text: str | None, shards: Sequence[ShardConfig]) -> dict[str, float]:
    given = {shard.name: shard.weight for shard in shards}
    for part in filter(None, (text or "").replace(" ", "").split(",")):
        name, _, number = part.partition("=")
        if name not in given:
            raise ConfigError(f"--weights: there is no shard {name!r}; there are {', '.join(given)}")
        try:
            given[name] = float(number)
            if not (math.isfinite(given[name]) and given[name] >= 0):
                raise ValueError
        except ValueError:
            raise ConfigError(f"--weights: {part!r} is no weight; write pg1=2,pg2=1") from None
    return given


def _carry_out(
    config: ClusterConfig, wanted: Sequence[tuple[int, str]], *, full_speed: bool, dry_run: bool, yes: bool
) -> None:
    out = console()
    wishes = check_wishes(config, wanted)
    if not wishes:
        out.print("nothing to do: every slot is where it should be")
        return
    _print_plan(config, wishes)
    if dry_run:
        return
    confirm(yes, "Move them?")
    with bars([(wish.slot, wish.source, wish.target) for wish in wishes]) as report:
        done, failed = move_all(config, wishes, report, pace=0.0 if full_speed else MOVE_PACE_FACTOR)
    print_outcome(done, failed, len(wishes))


def _print_plan(config: ClusterConfig, wishes: Sequence[Wish]) -> None:
    shard_map = load_map(config).shard_map
    rows = table(
        "shard", "slots now", "after", "gives", "takes", numbers=frozenset({"slots now", "after"}), wraps=_SLOTS
    )
    for shard in config.shards:
        gives = [wish.slot for wish in wishes if wish.source == shard.name]
        takes = [wish.slot for wish in wishes if wish.target == shard.name]
        now = len(shard_map.slots_of(shard.name))
        after = now - len(gives) + len(takes)
        rows.add_row(Text(shard.name, "bold"), str(now), str(after), ranges(gives) or "-", ranges(takes) or "-")
    out = console()
    count = "1 slot moves" if len(wishes) == 1 else f"{len(wishes)} slots move"
    out.print(Text(f"{count}; each is in use all the time but for a moment's switch"))
    out.print()
    out.print(rows)
    out.print()


COMMANDS: dict[str, Callable[..., None]] = {
    "add": add,
    "remove": remove,
    "drain": drain,
    "move": move,
    "rebalance": rebalance,
    "verify": verify,
}
