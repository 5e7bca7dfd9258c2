"""``sharded-wf shards``: make a cluster, see how it fares, bring its tables up to date."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from sharded_wf.cli import migration, moves, resharding, splits, top
from sharded_wf.cli.options import ClusterOption, DryRun, JsonOption, Yes, find_cluster
from sharded_wf.cli.output import confirm, console, duration, print_json, ranges, table
from sharded_wf.cluster.fleet import Count, FleetStatus, ShardStatus, fleet_status
from sharded_wf.cluster.initialize import init_cluster
from sharded_wf.cluster.timelines import accept_primary, look_at_primary
from sharded_wf.limits import LOOK_SECONDS, SLOTS_DEFAULT
from sharded_wf.reshard.fleet import unfinished_moves

app = typer.Typer(
    help="The shards of the cluster: make them, look at them, migrate them, move slots between them, split slots.",
    no_args_is_help=True,
)

ADDRESS_FROM_COLUMNS = 110
"""A narrower terminal shows no addresses, so that everything else fits in."""
NOTHING = "-"
for _name, _command in (moves.COMMANDS | top.COMMANDS).items():
    app.command(_name)(_command)
app.command("split")(splits.split)
app.command("migrate")(migration.migrate)
_COLUMNS: tuple[str, ...] = (
    "",
    "shard",
    "address",
    "postgres",
    "answer",
    "slots",
    "backlog",
    "running",
    "parked",
    "executors",
)
_NUMBERS = frozenset(_COLUMNS[4:9])


@app.command()
def init(
    cluster: ClusterOption = None,
    slots: Annotated[
        int | None,
        typer.Option(
            help=f"How many slots a new cluster has ({SLOTS_DEFAULT} unless said). They are spread over the shards and "
            "move between them later, so have several times as many as you will ever have shards.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make the cluster in empty databases, or add the shards that are new in shards.toml. Safe to repeat."""
    config = find_cluster(cluster)
    made = init_cluster(config, slots)
    shard_map, out = made.shard_map, console()
    shards = "1 shard" if len(config.shards) == 1 else f"{len(config.shards)} shards"
    verb = "is ready" if made.created else "exists"
    out.print(Text.assemble("cluster ", (config.name, "bold"), f" {verb}: {shard_map.slots} slots on {shards}"))
    for shard in config.shards:
        note = ", joined just now" if shard.name in made.joined else ""
        out.print(Text(f"  {shard.name}: {len(shard_map.slots_of(shard.name))} slots at {shard.address}{note}"))


@app.command()
def status(
    cluster: ClusterOption = None,
    json: JsonOption = False,
    wait: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a shard's answer.")] = LOOK_SECONDS,
) -> None:
    """Show each shard: whether it answers, its slots, its backlog, who works there. Exits with 1 if one is not well."""
    config = find_cluster(cluster)
    with ThreadPoolExecutor(max_workers=1) as pool:  # a shard that hangs is waited for once
        asked = pool.submit(unfinished_moves, config, wait)
        found = fleet_status(config, wait)
        hanging = asked.result() if found.cluster_id is not None else []
    # A slot that was retired by a process that is gone is nowhere, until somebody finishes its move.
    stuck = any(one.move.state == "retired" and one.move.abandoned for one in hanging)
    if json:
        plain: dict[str, Any] = msgspec.to_builtins(found)
        print_json(
            {"healthy": found.healthy and not stuck, **plain, "moves": [resharding.plain(one) for one in hanging]}
        )
    else:
        _print_status(found)
        resharding.print_unfinished(hanging)
    if not found.healthy or stuck:
        raise typer.Exit(1)


@app.command()
def accept(
    shard: Annotated[str, typer.Argument(help="The shard.")],
    cluster: ClusterOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Say that the server which the shard's DSN leads to is its primary, though another or a later one was seen: after
    a restore, or an upgrade in place. Not after a failover, which is noticed."""
    config = find_cluster(cluster)
    found, out = look_at_primary(config, shard), console()
    if found.found is None:
        out.print(Text(f"{shard}: {found.address} tells no timeline; nothing to accept"))
        return
    here = f"{found.address}, on {found.found}"
    if found.heard is not None and not found.needed:
        out.print(Text(f"{shard}: {here}, is not refused: nothing to accept"))
        return
    before = "" if found.heard is None else f" (before: {found.heard})"
    out.print(Text.assemble((shard, "bold"), f" goes on at {here}{before}"))
    out.print(Text("what any other server of this shard has, and this one does not, is given up", "yellow"))
    if dry_run:
        return
    confirm(yes, "Is every other server of it stopped for good?")
    out.print(Text(f"{shard}: {accept_primary(config, shard)}, accepted"))


def _print_status(found: FleetStatus) -> None:
    out = console()
    title = Text.assemble("cluster ", (found.name, "bold"))
    if found.epoch is not None:
        title.append(f" · {found.slots} slots · map epoch {found.epoch}", "dim")
    out.print(title)
    if found.problem:
        out.print(Text(found.problem, "bold red"))
    columns = [column for column in _COLUMNS if column != "address" or out.width >= ADDRESS_FROM_COLUMNS]
    rows = table(*columns, numbers=_NUMBERS)
    for shard in found.shards:
        cells = dict(zip(_COLUMNS, _row(shard), strict=True))
        rows.add_row(*(cells[column] for column in columns))
    out.print()
    out.print(rows)
    _print_notes(found)


def _row(shard: ShardStatus) -> list[Text]:
    version = (shard.server_version or "").split(" ")[0]
    answer = duration(shard.answer_seconds) if shard.answer_seconds is not None else NOTHING
    name, address = Text(shard.name, "bold"), Text(shard.address, "dim")
    if not shard.reachable or shard.problem:
        mark = Text("✗", "bold red")
        return [mark, name, address, Text(version or NOTHING), Text(answer), *(Text(NOTHING, "dim") for _ in range(5))]
    needs_care = shard.stranded or shard.pending_migrations or (shard.backlog.value and not _live(shard))
    mark = Text("!", "bold yellow") if needs_care else Text("✓", "bold green")
    counts = [f"{len(shard.slots)}", _lower_bound(shard.backlog), f"{shard.running:,}", _estimate(shard.parked)]
    return [mark, name, address, Text(version), Text(answer), *(Text(count) for count in counts), _executors(shard)]


def _print_notes(found: FleetStatus) -> None:
    """What needs somebody's attention, a line each."""
    notes = [note for shard in found.shards for note in _notes(shard)]
    out = console()
    if notes:
        out.print()
    for note in notes:
        out.print(note)
    if found.astray:
        slots = ("slot " if len(found.astray) == 1 else "slots ") + ranges(list(found.astray))
        text = f"Citus has moved the rows of {slots}: served over a hop until you run sharded-wf shards rebalance"
        out.print(Text.assemble(("! ", "bold yellow"), text))


def _notes(shard: ShardStatus) -> Iterator[Text]:
    def note(text: str, *, bad: bool = False) -> Text:
        mark = ("✗ ", "bold red") if bad else ("! ", "bold yellow")
        return Text.assemble(mark, (shard.name, "bold"), f": {text}")

    if shard.problem:
        yield note(shard.problem if shard.reachable else f"unreachable: {shard.problem}", bad=True)
    if shard.affected:
        few = len(shard.affected) == 1
        yield note(f"affected: {'slot' if few else 'slots'} {ranges(shard.affected)}", bad=True)
    for left in shard.stranded:
        ready = _lower_bound(left.ready)
        yield note(f"{ready} ready in queue {left.queue!r}, and no live executor runs {left.capability!r}")
    if shard.pending_migrations:
        when = ", once every process runs this version" if shard.pending_migrations == shard.post_migrations else ""
        yield note(f"{shard.pending_migrations} migrations to apply{when}; run: sharded-wf shards migrate")
    for executor in shard.executors:
        if not executor.live:
            yield note(f"executor {executor.executor} was last heard of {duration(executor.beat_age_seconds)} ago")


def _live(shard: ShardStatus) -> int:
    return sum(executor.live for executor in shard.executors)


def _executors(shard: ShardStatus) -> Text:
    dead = len(shard.executors) - _live(shard)
    text = Text(str(_live(shard)))
    if dead:
        text.append(f" +{dead} silent", "yellow")
    return text


def _lower_bound(count: Count) -> str:
    return f"{count.value:,}" if count.exact else f"{count.value:,}+"


def _estimate(count: Count) -> str:
    return f"{count.value:,}" if count.exact else f"~{count.value:,}"
