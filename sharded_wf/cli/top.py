"""``sharded-wf shards top``: where the load is, by slot, queue and hash tag."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Annotated

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sharded_wf.cli.options import ClusterOption, JsonOption, find_cluster
from sharded_wf.cli.output import console, print_json, table
from sharded_wf.config import ClusterConfig
from sharded_wf.doctor.finding import size
from sharded_wf.doctor.load import Busy, Load, Sampler
from sharded_wf.limits import TOP_INTERVAL_SECONDS, TOP_SAMPLE_MAX_ROWS, TOP_SHOWN_ROWS, TOP_WINDOW_SECONDS

_BUSY = ("new", "running", "ready")


def top(
    cluster: ClusterOption = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = TOP_INTERVAL_SECONDS,
    once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="Show so many slots, queues and tags.")] = TOP_SHOWN_ROWS,
    json: JsonOption = False,
) -> None:
    """Show the load by slot, queue and hash tag; of a hot tag, the command that gives its slot a shard of its own.

    Live until Ctrl-C in a terminal; else, or with --once or --json, one look. Exits with 1 if a shard does not answer.
    """
    config = find_cluster(cluster)
    sampler, out = Sampler(config), console()
    sampler.look()  # rates need two
    time.sleep(interval)
    load = sampler.look()
    if json:
        print_json(msgspec.to_builtins(load))
    elif once or not out.is_terminal:
        out.print(_shown(config, load, rows))
    else:
        _live(config, sampler, load, interval, rows)
        return
    if load.silent:
        raise typer.Exit(1)


def _live(config: ClusterConfig, sampler: Sampler, load: Load, interval: float, rows: int) -> None:
    with Live(_shown(config, load, rows), console=console(), auto_refresh=False, screen=True) as live:
        try:
            while True:
                live.update(_shown(config, load, rows), refresh=True)
                time.sleep(interval)
                load = sampler.look()
        except KeyboardInterrupt:
            return


def _shown(config: ClusterConfig, load: Load, rows: int) -> RenderableType:
    writes, starts, steps = (sum(getattr(one, name) for one in load.slots) for name in ("writes", "starts", "steps"))
    title = Text.assemble(
        "cluster ", (config.name, "bold"),
        (f" · {len(load.slots)} slots · {starts:,.0f} starts/s · {steps:,.0f} steps/s · {writes:,.0f} writes/s", "dim"),
    )  # fmt: skip
    parts: list[RenderableType] = [title]
    parts += [Text(f"✗ {name}: {reason}", "bold red") for name, reason in load.silent.items()]
    parts += [Text(), _slots(load, rows)]
    if load.queues:
        parts += [Text(), _queues(load, rows)]
    parts += [Text(), _tags(load, rows) if load.tags else Text("no workflow has a hash tag: {tag} in its ID", "dim")]
    parts.append(Text(f"new: created in the last {TOP_WINDOW_SECONDS:.0f} s; a bounded sample of each slot", "dim"))
    for advice in load.advice:
        parts += [Text(), Text.assemble(("! ", "bold yellow"), advice.what, "; to give it a shard of its own:")]
        parts += [Text(f"    {command}", "cyan") for command in advice.commands]
        parts.append(
            Text(f"    and weight = {advice.weight:.2g} for that shard in shards.toml, so that it keeps it", "dim")
        )
    return Group(*parts)


def _counts(busy: Busy) -> tuple[str, ...]:
    """Of one slot, a count that has reached the sample's bound is a lower bound."""
    more = {True: "+", False: ""}
    counts = (busy.started, busy.running, busy.ready)
    return tuple(f"{count:,}{more[count >= TOP_SAMPLE_MAX_ROWS]}" if count else "–" for count in counts)


def _filled(made: Table, rows: Iterable[tuple[RenderableType, ...]]) -> Table:
    for row in rows:
        made.add_row(*row)
    return made


def _slots(load: Load, rows: int) -> Table:
    columns = ("slot", "shard", "writes/s", "of all", "starts/s", "steps/s", *_BUSY, "size")
    made = table(*columns, numbers=frozenset(columns) - {"shard"})
    return _filled(made, (
        (Text(str(one.slot), "bold"), Text(one.shard), f"{one.writes:,.0f}", f"{one.part:.0%}", f"{one.starts:,.0f}",
         f"{one.steps:,.0f}", *_counts(one.busy), size(one.bytes))
        for one in load.slots[:rows]
    ))  # fmt: skip


def _queues(load: Load, rows: int) -> Table:
    made = table("queue", *_BUSY, numbers=frozenset(_BUSY))
    return _filled(made, ((Text(one.queue, "bold"), *_counts(one.busy)) for one in load.queues[:rows]))


def _tags(load: Load, rows: int) -> Table:
    made = table("tag", "slot", "shard", *_BUSY, "of its slot", numbers=frozenset({*_BUSY, "slot", "of its slot"}))
    return _filled(made, (
        (Text(f"{{{one.tag}}}", "bold"), str(one.slot), Text(one.shard), *_counts(one.busy), f"{one.part:.0%}")
        for one in load.tags[:rows]
    ))  # fmt: skip


COMMANDS: dict[str, Callable[..., None]] = {"top": top}
