"""``sharded-wf shards``, the commands that change where slots lie: add, remove, drain, move, rebalance, verify.

Each shows its plan before it acts (``--dry-run`` ends there), asks unless it was told ``--yes``, and shows how far it
is.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from sharded_wf.cli.options import ClusterOption, JsonOption
from sharded_wf.cli.output import console, duration, print_error, print_json, ranges, table
from sharded_wf.cluster.directory import load_map
from sharded_wf.config import ClusterConfig, find_config
from sharded_wf.errors import ConfigError, MoveRefused
from sharded_wf.limits import MOVE_PACE_FACTOR
from sharded_wf.reshard import plan
from sharded_wf.reshard.checkup import verify_slot
from sharded_wf.reshard.fleet import Unfinished, Wish, check_wishes, move_all, resume_all, undo_all, unfinished_moves
from sharded_wf.reshard.members import add_shards, add_to_file, check_removable, remove_shard
from sharded_wf.reshard.move import Moved
from sharded_wf.reshard.move import Progress as Step

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and do nothing.")]
FullSpeed = Annotated[bool, typer.Option("--full-speed", help="Copy without rests, at the expense of other slots.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]

_PHASES = {
    "planned": "planned",
    "copying": "copying",
    "following": "following changes",
    "verifying": "comparing both sides",
    "draining": "executors give it back",
    "retired": "switching",
    "live": "live on its new shard",
    "told": "telling the others",
    "cleaned": "done",
    "undoing": "undoing",
    "unmade": "undoing",
    "undone": "undone",
}


def add(
    shard: Annotated[str | None, typer.Argument(help="The name of the new shard. Default: all that are new.")] = None,
    cluster: ClusterOption = None,
    dsn: Annotated[str | None, typer.Option(help="Write a [[shard]] with this DSN into shards.toml.")] = None,
    dsn_env: Annotated[str | None, typer.Option(help="The same, with the variable that holds the DSN.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Let new shards join the cluster, without slots; `rebalance` then gives them their share. Safe to repeat."""
    config = find_config(cluster)
    known = {one.name for one in config.shards}
    if (dsn is not None or dsn_env is not None) and shard is not None and shard not in known:
        if dry_run:
            console().print(Text(f"would write [[shard]] {shard} into {config.source}, and let it join"))
            return
        config = add_to_file(config, shard, dsn=dsn, dsn_env=dsn_env)
        console().print(Text(f"[[shard]] {shard} is in {config.source} now"))
    elif shard is not None:
        config.shard(shard)  # an error says what to write
    if dry_run:
        members = {one.name for one in load_map(config).shards}
        new = [one for one in config.shards if one.name not in members]
        for one in new:
            console().print(Text(f"{one.name} would join, at {one.address}"))
        if not new:
            console().print(f"every shard of {config.source} is part of the cluster")
        return
    joined = add_shards(config).joined
    out = console()
    for name in joined:
        out.print(Text.assemble((name, "bold"), " has joined, without slots"))
    if not joined:
        out.print(f"every shard of {config.source} is part of the cluster already")
    else:
        out.print("next: sharded-wf shards rebalance")


def remove(
    shard: Annotated[str, typer.Argument(help="The shard; it must hold no slots.")],
    cluster: ClusterOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Let an empty shard leave the cluster. Its database stays; only our control schema goes."""
    config = find_config(cluster)
    leases = check_removable(config, shard)
    out = console()
    out.print(Text.assemble((shard, "bold"), f" holds no slots and can leave; {leases} executors will let go of it"))
    if dry_run:
        return
    _confirm(yes, "Remove it?")
    remove_shard(config, shard)
    out.print(Text(f"{shard} is no shard any more. Delete its [[shard]] from {config.source}, everywhere."))


def move(
    slots: Annotated[list[int] | None, typer.Argument(help="The slots.", show_default=False)] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="SHARD", help="Where to.", show_default=False)] = None,
    cluster: ClusterOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish moves that were cut off (all, or these slots').")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take moves back that were cut off before they were live.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also if their process seems to live: it is shut out.")
    ] = False,
    full_speed: FullSpeed = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Move slots to another shard while they are in use. Can be killed at any moment, and resumed."""
    config = find_config(cluster)
    if resume or undo:
        if resume and undo:
            raise ConfigError("--resume or --undo, one of the two")
        _settle(config, slots or [], undo=undo, force=force, dry_run=dry_run, yes=yes)
        return
    if not slots or to is None:
        raise ConfigError("say which slots, and where to: sharded-wf shards move 3 7 --to pg2")
    _carry_out(config, [(slot, to) for slot in dict.fromkeys(slots)], full_speed=full_speed, dry_run=dry_run, yes=yes)


def drain(
    shard: Annotated[str, typer.Argument(help="The shard to empty.")],
    cluster: ClusterOption = None,
    weights: Annotated[str | None, typer.Option(help="As for rebalance.", metavar="pg1=2,pg2=1")] = None,
    full_speed: FullSpeed = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Move every slot of a shard to the others."""
    config = find_config(cluster)
    config.shard(shard)
    directory = load_map(config)
    given = _weights(weights, [one.name for one in directory.shards])
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
            help="How much of the slots each shard shall have, in proportion. A shard that is not named has weight 1.",
            metavar="pg1=2,pg2=1",
        ),
    ] = None,
    full_speed: FullSpeed = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Give every shard its share of the slots, with as few moves as can be."""
    config = find_config(cluster)
    directory = load_map(config)
    given = _weights(weights, [one.name for one in directory.shards])
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
    config = find_config(cluster)
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


def _weights(text: str | None, shards: Sequence[str]) -> dict[str, float]:
    given = dict.fromkeys(shards, 1.0)
    for part in filter(None, (text or "").replace(" ", "").split(",")):
        name, _, number = part.partition("=")
        if name not in given:
            raise ConfigError(f"--weights: there is no shard {name!r}; there are {', '.join(shards)}")
        try:
            given[name] = float(number)
        except ValueError:
            raise ConfigError(f"--weights: {part!r} is no weight; write pg1=2,pg2=1") from None
    return given


def _confirm(yes: bool, question: str) -> None:
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("this asks before it acts; without a terminal, say --yes (or --dry-run)")
        typer.confirm(question, abort=True)


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
    _confirm(yes, "Move them?")
    with _bars([(wish.slot, wish.source, wish.target) for wish in wishes]) as report:
        done, failed = move_all(config, wishes, report, pace=0.0 if full_speed else MOVE_PACE_FACTOR)
    _print_outcome(done, failed, len(wishes))


def _print_plan(config: ClusterConfig, wishes: Sequence[Wish]) -> None:
    shard_map = load_map(config).shard_map
    rows = table("shard", "slots now", "after", "gives", "takes", numbers=frozenset({"slots now", "after"}))
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


@contextmanager
def _bars(slots: Sequence[tuple[int, str, str]]) -> Generator[Callable[[Step], None]]:
    """A bar for each slot that is on its way, and one for all."""
    out = console()
    lock = threading.Lock()
    tasks: dict[int, TaskID] = {}
    said: dict[int, str] = {}
    columns = (
        TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TextColumn("{task.fields[phase]}"),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        whole = progress.add_task("all slots", total=len(slots), phase="")

        def report(step: Step) -> None:
            with lock:
                phase = _PHASES.get(step.phase, step.phase)
                if not out.is_terminal:
                    if said.get(step.slot) != phase:
                        said[step.slot] = phase
                        out.print(Text(f"slot {step.slot}: {phase}"))
                    return
                if step.slot not in tasks:
                    name = f"slot {step.slot} {step.source} → {step.target}"
                    tasks[step.slot] = progress.add_task(name, total=None, phase=phase)
                progress.update(tasks[step.slot], completed=step.rows, total=step.total or None, phase=phase)
                if step.phase in ("cleaned", "undone"):
                    progress.remove_task(tasks.pop(step.slot))
                    progress.advance(whole)

        yield report


def _print_outcome(done: Sequence[Moved], failed: dict[int, Exception], wanted: int) -> None:
    out = console()
    for moved in sorted(done, key=lambda one: one.slot):
        pause = "" if moved.pause_seconds is None else f", no writes for {duration(moved.pause_seconds)}"
        out.print(
            Text.assemble(
                ("✓ ", "bold green"),
                f"slot {moved.slot} is on ",
                (moved.target, "bold"),
                f": {moved.rows:,} rows{pause}",
            )
        )
        if moved.untold:
            out.print(Text(f"  {', '.join(moved.untold)} could not be told; they learn it from the others", "yellow"))
        if not moved.cleaned:
            out.print(Text(f"  {moved.source} is away, with the old rows: later, run shards move --resume", "yellow"))
    for slot, error in sorted(failed.items()):
        print_error(f"slot {slot}: {error}")
    if failed:
        left = wanted - len(done) - len(failed)
        if left > 0:
            out.print(f"{left} slots were not begun; run the same command again when this is settled")
        raise typer.Exit(1)


def _settle(config: ClusterConfig, slots: Sequence[int], *, undo: bool, force: bool, dry_run: bool, yes: bool) -> None:
    out = console()
    hanging = [one for one in unfinished_moves(config) if not slots or one.move.slot in slots]
    if not hanging:
        out.print("no move is unfinished")
        return
    print_unfinished(hanging)
    if dry_run:
        return
    alive = [one.move for one in hanging if not one.move.abandoned]
    if alive and not force:
        raise MoveRefused(
            f"slot {alive[0].slot} is being moved by {alive[0].runner}, which seems to be alive. Let it go on; "
            "or take the move away from it with --force"
        )
    _confirm(yes, "Undo them?" if undo else "Finish them?")
    with _bars([(one.move.slot, one.move.source, one.move.target) for one in hanging]) as report:
        moves = [one.move for one in hanging]
        done, failed = undo_all(config, moves, report) if undo else resume_all(config, moves, report)
    if undo:
        for one in hanging:
            if one.move.slot not in failed:
                out.print(Text(f"slot {one.move.slot} stays on {one.move.source}"))
    _print_outcome(done, failed, len(hanging))


def print_unfinished(hanging: Sequence[Unfinished]) -> None:
    """A line for each unfinished move."""
    out = console()
    for one in hanging:
        known = one.move
        who = f"nobody drives it (last: {known.runner})" if known.abandoned else f"driven by {known.runner}"
        where = f"; not seen: {', '.join(one.unseen)}" if one.unseen else ""
        text = f"slot {known.slot} {known.source} → {known.target}: {known.state}, {who}{where}"
        out.print(Text.assemble(("! ", "bold yellow"), text))
    if any(one.move.abandoned for one in hanging):
        out.print("  to finish it: sharded-wf shards move --resume; to take it back: sharded-wf shards move --undo")


def plain(one: Unfinished) -> dict[str, object]:
    """An unfinished move for programs."""
    known = one.move
    return {
        "slot": known.slot, "source": known.source, "target": known.target, "state": known.state,
        "runner": known.runner, "abandoned": known.abandoned, "unseen": list(one.unseen),
    }  # fmt: skip


COMMANDS: dict[str, Callable[..., None]] = {
    "add": add,
    "remove": remove,
    "drain": drain,
    "move": move,
    "rebalance": rebalance,
    "verify": verify,
}
