"""``sharded-wf shards split``: more slots than the cluster was made with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text

from sharded_wf.cli.options import ClusterOption, DryRun, Yes, find_cluster
from sharded_wf.cli.output import confirm, console, ranges, table
from sharded_wf.cli.resharding import Force, FullSpeed, Resume, Undo, bars, print_outcome, settle
from sharded_wf.cluster.directory import load_map
from sharded_wf.config import ClusterConfig
from sharded_wf.errors import ConfigError
from sharded_wf.limits import MOVE_PACE_FACTOR
from sharded_wf.reshard import plan
from sharded_wf.reshard.fleet import Wish, check_splits, move_all, sizes
from sharded_wf.routing import ShardMap


def split(
    slots: Annotated[
        list[int] | None,
        typer.Argument(help="These slots. Default: all that were split least often.", show_default=False),
    ] = None,
    cluster: ClusterOption = None,
    resume: Resume = False,
    undo: Undo = False,
    force: Force = False,
    until: Annotated[
        int | None,
        typer.Option(help="Only while there are fewer slots than this: then repeating the command does no more."),
    ] = None,
    full_speed: FullSpeed = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Split slots in two while they are in use: all of them, which doubles their number, or some. Can be killed at any
    moment: finish what hangs with --resume, then run it again, and it goes on with the slots that are left."""
    config = find_cluster(cluster)
    if config.coordinator is not None:
        raise ConfigError(
            "slots of a Citus cluster can't be split: choose their number when it is made (sharded-wf shards init "
            "--slots); Citus moves them whole"
        )
    if resume or undo:
        settle(config, slots or [], splits=True, resume=resume, undo=undo, force=force, dry_run=dry_run, yes=yes)
        return
    shard_map = load_map(config).shard_map
    if until is not None and shard_map.slots >= until:
        console().print(f"nothing to do: there are {shard_map.slots} slots")
        return
    wanted = list(dict.fromkeys(slots)) if slots else plan.doubling(shard_map.placement, shard_map.base)
    wishes = check_splits(config, wanted)
    _print_plan(config, shard_map, wishes)
    if dry_run:
        return
    confirm(yes, "Split them?")
    with bars([(wish.slot, wish.source, wish.target) for wish in wishes]) as report:
        done, failed = move_all(config, wishes, report, pace=0.0 if full_speed else MOVE_PACE_FACTOR)
    print_outcome(done, failed, len(wishes))


def _print_plan(config: ClusterConfig, shard_map: ShardMap, wishes: Sequence[Wish]) -> None:
    room = sizes(config, wishes)
    numbers = frozenset({"slots now", "after", "all of them", "the largest"})
    rows = table("shard", "slots now", "after", "splits", "all of them", "the largest", numbers=numbers)
    for shard in config.shards:
        splits = [wish.slot for wish in wishes if wish.source == shard.name]
        now = len(shard_map.slots_of(shard.name))
        taken = [room.get(slot, 0) for slot in splits] or [0]
        cells = (str(now), str(now + len(splits)), ranges(splits), _mebibytes(sum(taken)), _mebibytes(max(taken)))
        rows.add_row(Text(shard.name, "bold"), *cells)
    out = console()
    count = "1 slot is" if len(wishes) == 1 else f"{len(wishes)} slots are"
    out.print(Text(f"{count} split in two: {shard_map.slots} slots now, {shard_map.slots + len(wishes)} then"))
    out.print("each is in use all the time but for a moment's switch; on a shard, one after the other")
    out.print()
    out.print(rows)
    out.print()
    out.print("a shard needs as much free disk as its largest slot takes; a split is not taken back once it is live")


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
