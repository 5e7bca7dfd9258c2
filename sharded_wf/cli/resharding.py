"""What the commands share that change where slots lie: options, the question before, the bars meanwhile, the words
afterwards; and moves that hang."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from sharded_wf.cli.output import confirm, console, duration, print_error
from sharded_wf.config import ClusterConfig
from sharded_wf.errors import ConfigError, MoveRefused
from sharded_wf.reshard.coordinator import Moved
from sharded_wf.reshard.coordinator import Progress as Step
from sharded_wf.reshard.fleet import Unfinished, resume_all, undo_all, unfinished_moves

FullSpeed = Annotated[bool, typer.Option("--full-speed", help="Copy without rests, at the expense of other slots.")]
Resume = Annotated[bool, typer.Option("--resume", help="Finish what was cut off (all, or these slots').")]
Undo = Annotated[bool, typer.Option("--undo", help="Take back what was cut off before it was live.")]
Force = Annotated[bool, typer.Option("--force", help="Also if its process seems to live: it is shut out.")]

_PHASES = {
    "planned": "planned",
    "copying": "copying",
    "following": "following changes",
    "verifying": "comparing both sides",
    "draining": "executors give it back",
    "retired": "switching",
    "live": "live",
    "told": "telling the others",
    "cleaned": "done",
    "undoing": "undoing",
    "unmade": "undoing",
    "undone": "undone",
}


@contextmanager
def bars(slots: Sequence[tuple[int, str, str]]) -> Generator[Callable[[Step], None]]:
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
                    name = f"slot {step.slot} {_way(step.source, step.target)}"
                    tasks[step.slot] = progress.add_task(name, total=None, phase=phase)
                progress.update(tasks[step.slot], completed=step.rows, total=step.total or None, phase=phase)
                if step.phase in ("cleaned", "undone"):
                    progress.remove_task(tasks.pop(step.slot))
                    progress.advance(whole)

        yield report


def _way(source: str, target: str) -> str:
    return f"on {source}, in two" if source == target else f"{source} → {target}"


def print_outcome(done: Sequence[Moved], failed: dict[int, Exception], wanted: int) -> None:
    """What was moved or split, of how many, and what was not. Exits with 1 if something was not."""
    out = console()
    for moved in sorted(done, key=lambda one: one.slot):
        pause = "" if moved.pause_seconds is None else f", no writes for {duration(moved.pause_seconds)}"
        where = " and ".join(map(str, moved.into)) or f"on {moved.target}"
        copied = f": {moved.rows:,} rows" if moved.rows or pause else ""  # a resumed one may only have cleaned up
        out.print(Text.assemble(("✓ ", "bold green"), f"slot {moved.slot} is {where} now{copied}{pause}"))
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


def settle(
    config: ClusterConfig,
    slots: Sequence[int],
    *,
    splits: bool = False,
    resume: bool,
    undo: bool,
    force: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Finish what hangs, or take it back: moves and splits, or ``splits`` alone; all, or of these slots."""
    if resume and undo:
        raise ConfigError("--resume or --undo, one of the two")
    out = console()
    hanging = [one for one in unfinished_moves(config) if not slots or one.move.slot in slots]
    if splits:
        hanging = [one for one in hanging if one.move.splits]
    if not hanging:
        out.print("no split is unfinished" if splits else "no move is unfinished")
        return
    print_unfinished(hanging)
    if dry_run:
        return
    alive = [one.move for one in hanging if not one.move.abandoned]
    if alive and not force:
        raise MoveRefused(
            f"slot {alive[0].slot} is in the hands of {alive[0].runner}, which seems to be alive. Let it go on; "
            "or take the slot away from it with --force"
        )
    confirm(yes, "Undo them?" if undo else "Finish them?")
    with bars([(one.move.slot, one.move.source, one.move.target) for one in hanging]) as report:
        moves = [one.move for one in hanging]
        done, failed = undo_all(config, moves, report) if undo else resume_all(config, moves, report)
    if undo:
        for one in hanging:
            if one.move.slot not in failed:
                stays = "stays one slot" if one.move.splits else f"stays on {one.move.source}"
                out.print(Text(f"slot {one.move.slot} {stays}"))
    print_outcome(done, failed, len(hanging))


def print_unfinished(hanging: Sequence[Unfinished]) -> None:
    """A line for each unfinished move."""
    out = console()
    for one in hanging:
        known = one.move
        who = f"nobody drives it (last: {known.runner})" if known.abandoned else f"driven by {known.runner}"
        where = f"; not seen: {', '.join(one.unseen)}" if one.unseen else ""
        text = f"slot {known.slot} {_way(known.source, known.target)}: {known.state}, {who}{where}"
        out.print(Text.assemble(("! ", "bold yellow"), text))
    if any(one.move.abandoned for one in hanging):
        command = "sharded-wf shards " + ("split" if all(one.move.splits for one in hanging) else "move")
        out.print(f"  to finish it: {command} --resume; to take it back: {command} --undo")


def plain(one: Unfinished) -> dict[str, object]:
    """An unfinished move for programs."""
    known = one.move
    return {
        "slot": known.slot, "source": known.source, "target": known.target, "splits": known.splits,
        "state": known.state, "runner": known.runner, "abandoned": known.abandoned, "unseen": list(one.unseen),
    }  # fmt: skip
