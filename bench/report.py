"""How results are shown: a table in the terminal, Markdown that holds everything needed to doubt it, and plots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sharded_wf.cli.output import table

from .certificate import Certificate
from .percentiles import Latency
from .result import Result

DASH = "–"


def number(value: float | None, digits: int = 0) -> str:
    return DASH if value is None else f"{value:,.{digits}f}"


def milliseconds(latency: Latency) -> str:
    """``p50 1.2, p95 3.4, p99 5.6, p99.9 7.8 ms``."""
    parts = (("p50", latency.p50), ("p95", latency.p95), ("p99", latency.p99), ("p99.9", latency.p999))
    return ", ".join(f"{name} {number(value, 1)}" for name, value in parts) + " ms"


def title(result: Result) -> str:
    loop = "closed loop" if result.rate is None else f"open loop, {result.rate:,.0f} starts/s"
    steps = f" with {result.steps} steps" if result.steps else ""
    shards = "1 shard" if result.shards == 1 else f"{result.shards} shards"
    return f"{result.workload}{steps}, {loop}, {shards}, {result.seconds:.0f} s"


def figures(result: Result) -> list[tuple[str, str]]:
    """The figures of a run, as pairs of name and value."""
    cpu = result.cpu_us_per_workflow
    found = [
        ("workflows/s, started and finished", number(result.workflows_per_second)),
        ("steps/s", number(result.steps_per_second)),
    ]
    if result.round_trips_per_second is not None:
        found.append(("round trips/s", number(result.round_trips_per_second)))
    if result.ceiling_workflows_per_second is not None:
        spread = " and ".join(number(one) for one in result.ceiling_before_and_after)
        found.append(("bare loop, before and after", spread))
        found.append(("ratio to the bare loop", number(result.ratio_to_ceiling, 2)))
    found += [
        ("latency", milliseconds(result.latency_ms)),
        (
            "CPU µs per workflow",
            f"Postgres {number(cpu.postgres)}, executors {number(cpu.executor)}, clients {number(cpu.client)}",
        ),
        ("WAL bytes per workflow", number(result.wal_bytes_per_workflow)),
        ("commits per workflow", number(result.commits_per_workflow, 3)),
        ("lost, duplicated, misordered", f"{result.lost}, {result.duplicated}, {result.misordered}"),
    ]
    return found


def certificate_line(certificate: Certificate) -> str:
    one = certificate
    judged = (
        f"{one.acknowledged:,} acknowledged starts, {one.finished:,} outcomes, {one.steps:,} recorded steps, "
        f"{one.messages:,} messages, {one.bodies_noted:,} noted bodies of steps"
    )
    rest = "" if one.drained else f"; {one.unfinished:,} had not ended and are not judged"
    return f"{judged}{rest}: {'all agree' if one.holds else 'THEY DO NOT AGREE'}"


def print_result(out: Console, result: Result) -> None:
    out.print(Text(title(result), "bold"))
    rows = table("", "", wraps=frozenset({""}))
    rows.show_header = False
    for name, value in figures(result):
        rows.add_row(Text(name, "dim"), Text(value))
    out.print(rows)
    if result.shards > 1:
        out.print(_shards_table(result))
    for note in result.notes:
        out.print(Text(note, "yellow"))
    print_certificate(out, result.certificate)


def _shards_table(result: Result) -> object:
    names = ("workflows/s", "steps/s", "p50 ms", "p99 ms", "Postgres CPU µs", "WAL bytes", "commits")
    rows = table("shard", *names, numbers=frozenset(names))
    for name, one in result.per_shard.items():
        rows.add_row(Text(name, "bold"), *_shard_cells(result, name, one.latency_ms))
    return rows


def _shard_cells(result: Result, name: str, latency: Latency) -> list[str]:
    one = result.per_shard[name]
    return [
        number(one.workflows_per_second), number(one.steps_per_second), number(latency.p50, 1), number(latency.p99, 1),
        number(one.cpu_us_per_workflow.postgres), number(one.wal_bytes_per_workflow),
        number(one.commits_per_workflow, 3),
    ]  # fmt: skip


def print_certificate(out: Console, certificate: Certificate) -> None:
    mark = Text("✓ ", "bold green") if certificate.holds else Text("✗ ", "bold red")
    out.print(mark + Text(certificate_line(certificate)))
    for violation in certificate.violations:
        out.print(Text(f"  {violation}", "red"))


# --- Markdown -------------------------------------------------------------------------------------------------------


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> list[str]:
    align = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (head, align, *rows)]


def markdown(result: Result, picture: str | None = None) -> str:
    """The report of a run."""
    lines = [f"# {title(result)}", "", *markdown_table(("", "measured"), figures(result)), ""]
    lines += [f"Latency is taken from {result.latency_ms.of}: {result.latency_ms.samples:,} samples."]
    lines += [f"{note}" for note in result.notes] + [""]
    if picture:
        lines += [f"![Rate and latency]({picture})", ""]
    if result.shards > 1:
        names = ("shard", "workflows/s", "steps/s", "p50 ms", "p99 ms", "Postgres CPU µs", "WAL bytes", "commits")
        shards = [[name, *_shard_cells(result, name, one.latency_ms)] for name, one in result.per_shard.items()]
        lines += ["## Shards", "", *markdown_table(names, shards), ""]
    lines += ["## Certificate", "", certificate_line(result.certificate) + ".", ""]
    lines += [f"- {violation}" for violation in result.certificate.violations]
    return "\n".join([*lines, *conditions_lines(result.conditions), ""])


def conditions_lines(conditions: dict[str, dict[str, str]]) -> list[str]:
    lines = ["", "## Conditions", ""]
    rows = [(name, value) for group in conditions.values() for name, value in group.items()]
    return [*lines, *markdown_table(("", ""), rows, numbers=False)]


def write_report(path: Path, result: Result) -> None:
    """``path`` as Markdown, and a picture beside it if matplotlib is installed."""
    from .plot import draw_run

    picture = path.with_suffix(".png")
    drawn = draw_run(result, picture)
    path.write_text(markdown(result, picture.name if drawn else None), encoding="utf-8")
