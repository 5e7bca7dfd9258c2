"""The commands of ``sharded-wf bench`` and ``python -m bench``."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from sharded_wf.cli.app import EXIT_CANNOT
from sharded_wf.cli.output import console, print_error, table
from sharded_wf.dev.embedded import EmbeddedServer
from sharded_wf.errors import ConfigError, ShardedWfError
from sharded_wf.limits import SLOTS_DEFAULT
from sharded_wf.retention import parse_age

from . import attribution as attributing
from . import compare as comparing
from . import flat as flatness
from . import latency as idle
from . import parked as parking
from . import scale as scaling
from . import soak as soaking
from . import workloads
from .bare import run_bare_loop
from .cluster import Shape, open_cluster
from .comparison import make_table
from .report import milliseconds, print_certificate, print_result, write_report
from .run import Plan, Say
from .run import run as run_plan

EXIT_VIOLATION = 1

app = typer.Typer(
    name="bench",
    help="Measure a cluster, and prove that nothing was lost on the way.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

EmbeddedOption = Annotated[
    int | None,
    typer.Option(min=1, help="So many embedded servers, one for each shard. [default: 1]", show_default=False),
]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config", metavar="FILE|DSN", show_default=False,
        help="Scratch databases on the servers of this shards.toml instead; dropped at the end.",
    ),
]  # fmt: skip
SlotsOption = Annotated[int, typer.Option(min=1, help="Slots of the whole cluster.")]
ExecutorsOption = Annotated[int, typer.Option(min=1, help="Executor processes.")]
SecondsOption = Annotated[float, typer.Option(min=0.5, help="Length of the window that counts.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the result to this file.", show_default=False)]
ReportOption = Annotated[
    Path | None,
    typer.Option("--report", help="Write a report to this file (Markdown), and a PNG beside it.", show_default=False),
]


def shape_of(embedded: int | None, config: str | None, slots: int) -> Shape:
    if embedded is not None and config is not None:
        raise ConfigError("--embedded and --config exclude each other: name one of them")
    shape = Shape(embedded or 1, config, slots)
    if config is None and slots < shape.embedded:
        raise ConfigError(f"{slots} slots on {shape.embedded} shards: each shard needs one at least")
    return shape


def steps_meant(workload: str, steps: int) -> int:
    """The steps of a workload that has no number of them to choose are none."""
    return steps if workload in ("steps", "sync-steps", "sync-workflow") else 0


@contextlib.contextmanager
def progress(out: Console) -> Generator[Say]:
    """One line that tells what goes on, with the time since the beginning; into a file, nothing."""
    begun = time.monotonic()
    if not out.is_terminal:
        yield lambda _text: None
        return
    with out.status(Text("starting the servers", "cyan")) as status:

        def say(text: str) -> None:
            status.update(Text.assemble((f"{time.monotonic() - begun:5.1f} s  ", "dim"), (text, "cyan")))

        yield say


def write_json(path: Path | None, value: object) -> None:
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


@app.command()
def run(
    workload: Annotated[str, typer.Option(help=f"One of: {', '.join(workloads.NAMES)}.")] = "noop",
    seconds: SecondsOption = 20.0,
    steps: Annotated[int, typer.Option(min=0, help="Steps of a workflow, where the workload has some.")] = 1,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Open loop: so many starts a second, whatever comes of them.", show_default="closed"
        ),
    ] = None,
    embedded: EmbeddedOption = None,
    config: ConfigOption = None,
    slots: SlotsOption = SLOTS_DEFAULT,
    executors: ExecutorsOption = 2,
    clients: Annotated[int, typer.Option(min=1, help="Client processes.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of each executor for def steps and workflows.", show_default=False),
    ] = None,
    ceiling: Annotated[bool, typer.Option(help="Run the bare loop before and after.")] = True,
    json: JsonOption = None,
    report: ReportOption = None,
) -> None:
    """Measure one workload, and judge what it left. Exits with 1 if anything was lost, doubled or out of order."""
    out = console()
    workloads.find(workload, steps)
    shape = shape_of(embedded, config, slots)
    options = {} if threads is None else {"threads": threads}
    plan = Plan(
        workload, steps_meant(workload, steps), seconds, slots,
        rate, executors, clients, ceiling, options=options,
    )  # fmt: skip
    with progress(out) as say, open_cluster(shape) as cluster:
        result = run_plan(cluster, plan, say)
    write_json(json, result)
    if report is not None:
        write_report(report, result)
    print_result(out, result)
    if not result.certificate.holds:
        raise typer.Exit(EXIT_VIOLATION)


@app.command()
def ceiling(
    seconds: SecondsOption = 20.0,
    steps: Annotated[int, typer.Option(min=0, help="Steps of a workflow.")] = 0,
    embedded: EmbeddedOption = None,
    config: ConfigOption = None,
    slots: SlotsOption = SLOTS_DEFAULT,
    executors: ExecutorsOption = 2,
    json: JsonOption = None,
) -> None:
    """The bare loop alone, on the first shard's server: what Postgres and Python can do here with no engine at all."""
    out = console()
    with progress(out) as say, open_cluster(shape_of(embedded, config, slots)) as cluster:
        say(f"the bare loop, for {seconds:g} s")
        found = run_bare_loop(cluster.bare, seconds=seconds, steps=steps, slots=slots, executors=executors)
    write_json(json, found)
    out.print(f"bare loop with {steps} steps: {found['workflows_per_second']:,.0f} workflows/s")


@app.command()
def latency(
    rounds: Annotated[int, typer.Option(min=1, help="Workflows, one after another.")] = 500,
    embedded: EmbeddedOption = None,
    config: ConfigOption = None,
    slots: SlotsOption = SLOTS_DEFAULT,
    json: JsonOption = None,
) -> None:
    """Start to result through an idle system, beside what one commit costs on the same server."""
    out = console()
    with progress(out) as say, open_cluster(shape_of(embedded, config, slots)) as cluster:
        found = idle.measure(cluster, rounds, say)
    write_json(json, found)
    bound = found.bound_ms
    out.print(f"one commit       {milliseconds(found.commit_ms)}")
    out.print(f"start to result  {milliseconds(found.start_to_result_ms)}")
    kept = "kept" if found.within else "NOT kept"
    out.print(f"bound            p50 {bound.p50:,.1f}, p99 {bound.p99:,.1f} ms: {kept}")
    print_certificate(out, found.certificate)
    if not found.certificate.holds:
        raise typer.Exit(EXIT_VIOLATION)


@app.command()
def scale(
    workload: Annotated[str, typer.Option(help=f"One of: {', '.join(workloads.NAMES)}.")] = "noop",
    seconds: SecondsOption = 20.0,
    steps: Annotated[int, typer.Option(min=0, help="Steps of a workflow, where the workload has some.")] = 1,
    shards: Annotated[
        list[int] | None, typer.Option(help="How many shards; repeat for more. [default: 1 2 4 8]")
    ] = None,
    quota: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Each server's share of one core, by a control group.")
    ] = 0.06,
    executors: ExecutorsOption = 1,
    json: JsonOption = None,
    report: ReportOption = None,
) -> None:
    """The same workload on 1, 2, 4, 8 embedded shards, each server held to the same share of CPU by a control group."""
    out = console()
    workloads.find(workload, steps)
    plan = Plan(workload, steps_meant(workload, steps), seconds, 0, executors=executors)
    with progress(out) as say:
        found = scaling.measure(plan, sorted(set(shards or scaling.SHARDS)), quota, say)
    write_json(json, found)
    if report is not None:
        scaling.write_report(report, found)
    head, rows = scaling.table_rows(found)
    shown = table(*head, numbers=frozenset(head))
    for row in rows:
        shown.add_row(*row)
    out.print(shown)
    out.print(scaling.conditions_text(found))
    growths = [f"{side} {'–' if value is None else f'{value:.2f}'}" for side, value in found.growth.items()]
    out.print(f"CPU per workflow, last point over the first: {', '.join(growths)}")
    for result in found.results:
        print_certificate(out, result.certificate)
    if not found.holds:
        raise typer.Exit(EXIT_VIOLATION)


@app.command()
def attribution(
    seconds: SecondsOption = 6.0,
    rounds: Annotated[int, typer.Option(min=1, help="Windows of each feature.")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="This feature; repeat it. [default: all]")] = None,
    slots: SlotsOption = SLOTS_DEFAULT,
    executors: ExecutorsOption = 2,
    json: JsonOption = None,
    report: ReportOption = None,
) -> None:
    """Where the time goes: what each thing that a workflow can do costs in CPU time, and on which side."""
    out = console()
    plan = Plan("noop", 0, seconds, slots, executors=executors)
    with progress(out) as say:
        found = attributing.measure(plan, rounds, only or [], say)
    write_json(json, found)
    if report is not None:
        attributing.write_report(report, found)
    head, rows = attributing.table_rows(found)
    shown = table(*head, numbers=frozenset(head[1:]))
    for row in rows:
        shown.add_row(*row)
    out.print(shown)
    out.print(attributing.conditions_text(found))
    if not found.holds:
        raise typer.Exit(EXIT_VIOLATION)


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.05, help="How long.")] = 15.0,
    workload: Annotated[str, typer.Option(help=f"One of: {', '.join(workloads.NAMES)}.")] = "steps",
    steps: Annotated[int, typer.Option(min=0, help="Steps of a workflow, where the workload has some.")] = 1,
    rate: Annotated[
        float | None, typer.Option(min=0.1, help="Open loop: starts a second.", show_default="closed")
    ] = None,
    embedded: EmbeddedOption = None,
    config: ConfigOption = None,
    slots: SlotsOption = SLOTS_DEFAULT,
    executors: ExecutorsOption = 2,
    retention: Annotated[str, typer.Option(help="How long finished workflows are kept; or forever.")] = "1 min",
    json: JsonOption = None,
    report: ReportOption = None,
) -> None:
    """Run for a long time, and watch the rate, the sizes of tables and the memory. Exits with 1 if a verdict is bad."""
    out = console()
    workloads.find(workload, steps)
    kept_seconds = parse_age(retention, "--retention")
    plan = Plan(workload, steps_meant(workload, steps), minutes * 60, slots, rate, executors)
    with progress(out) as say, open_cluster(shape_of(embedded, config, slots)) as cluster:
        found = soaking.measure(cluster, plan, minutes, kept_seconds, say)
    write_json(json, found)
    if report is not None:
        soaking.write_report(report, found)
    for verdict in found.verdicts:
        out.print(f"{soaking.verdict_mark(verdict)} {verdict.claim}: {verdict.found}")
    print_certificate(out, found.certificate)
    if not found.holds:
        raise typer.Exit(EXIT_VIOLATION)


@app.command()
def parked(
    workflows: Annotated[int, typer.Option(min=1, help="How many wait.")] = 1_000_000,
    rate: Annotated[float, typer.Option(min=0.1, help="Other starts a second, while they come due.")] = 1_000.0,
    embedded: EmbeddedOption = None,
    config: ConfigOption = None,
    slots: SlotsOption = SLOTS_DEFAULT,
    executors: ExecutorsOption = 2,
    json: JsonOption = None,
) -> None:
    """Many parked workflows: the memory they take, and what others feel when all of them come due together."""
    out = console()
    with progress(out) as say, open_cluster(shape_of(embedded, config, slots)) as cluster:
        found = parking.measure(cluster, workflows, rate, executors, say)
    write_json(json, found)
    grown = found.rss_growth_bytes / parking.MEGABYTE
    out.print(f"memory       {grown:+,.1f} MB, of the executor that grew most, with {workflows:,} workflows parked")
    out.print(f"wake-ups/s   {found.wakeups_per_second:,.0f}, all due at once, {found.wakeup_seconds:,.1f} s in all")
    out.print(f"meanwhile    {rate:,.0f} starts/s: {milliseconds(found.latency_ms)}")
    print_certificate(out, found.certificate)
    if not found.certificate.holds:
        raise typer.Exit(EXIT_VIOLATION)


@app.command()
def flat(
    seconds: SecondsOption = 30.0,
    finished: Annotated[int, typer.Option(min=1, help="Finished workflows beside the work.")] = 10_000_000,
    ready: Annotated[int, typer.Option(min=1, help="Workflows in the queue.")] = 1_000_000,
    pinned: Annotated[float, typer.Option(min=1, help="Seconds for which a transaction holds back vacuum.")] = 300.0,
    embedded: EmbeddedOption = None,
    config: ConfigOption = None,
    slots: SlotsOption = SLOTS_DEFAULT,
    executors: ExecutorsOption = 2,
    json: JsonOption = None,
) -> None:
    """Does the rate stay beside many finished rows, with a long queue, and with vacuum held back?"""
    out = console()
    plan = Plan("noop", 0, seconds, slots, executors=executors)
    with progress(out) as say:
        found = flatness.measure(shape_of(embedded, config, slots), plan, finished, ready, pinned, say)
    write_json(json, found)
    numbers = ("workflows/s", "of fresh", "its end over its beginning")
    shown = table("", *numbers, "", numbers=frozenset(numbers))
    for case in found.cases:
        cells = (f"{case.workflows_per_second:,.0f}", f"{case.ratio:.2f}", f"{case.late_ratio:.2f}")
        shown.add_row(case.name, *cells, case.about)
    out.print(shown)
    for case in found.cases:
        print_certificate(out, case.result.certificate)
    if not found.holds:
        raise typer.Exit(EXIT_VIOLATION)


@app.command()
def compare(
    seconds: SecondsOption = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="Windows of each contender, in alternating order.")] = 3,
    steps: Annotated[list[int] | None, typer.Option(help="Steps of a workflow; repeat it. [default: 0, 1, 3]")] = None,
    only: Annotated[list[str] | None, typer.Option(help="This contender; repeat it. [default: all]")] = None,
    dsn: Annotated[str | None, typer.Option(help="A server for scratch databases. [default: an embedded one]")] = None,
    slots: SlotsOption = SLOTS_DEFAULT,
    executors: ExecutorsOption = 2,
    json: JsonOption = None,
    report: ReportOption = None,
) -> None:
    """sharded_wf beside the bare loop, DBOS, PgQueuer and procrastinate, on one server (extra bench-peers)."""
    out = console()
    with contextlib.ExitStack() as exits:
        if dsn is None:
            dsn = exits.enter_context(EmbeddedServer.create(settings=comparing.SERVER_SETTINGS)).dsn("postgres")
        found = comparing.compare(
            dsn, seconds=seconds, rounds=rounds, steps=steps or [0, 1, 3], executors=executors, slots=slots,
            only=only or [], say=lambda line: out.print(line, highlight=False),
        )  # fmt: skip
    out.print(make_table(found))
    comparing.write(found, json, report, report and report.with_suffix(".png"))
    if found.failed:
        raise typer.Exit(EXIT_VIOLATION)


def main() -> None:
    """Run the command line. An error of ours is one clear message, not a traceback."""
    try:
        app()
    except ShardedWfError as error:
        print_error(str(error))
        sys.exit(EXIT_CANNOT)
