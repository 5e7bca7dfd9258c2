"""``sharded-wf doctor``: examine the cluster, and say what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from sharded_wf.cli.options import ClusterOption, JsonOption, find_cluster
from sharded_wf.cli.output import console, duration, print_json
from sharded_wf.doctor.checks import Family
from sharded_wf.doctor.examine import Report, examine
from sharded_wf.doctor.finding import RUNBOOK, Finding, Severity, Unseen
from sharded_wf.doctor.registry import FAMILIES, WRONG_DATABASE

EXIT_WARNING = 1
EXIT_CRITICAL = 3
"""2 is what every command exits with that could not do what it was asked."""

_MARKS = {
    None: Text("✓", "bold green"),
    Severity.NOTE: Text("·", "bold cyan"),
    Severity.WARNING: Text("!", "bold yellow"),
    Severity.CRITICAL: Text("✗", "bold red"),
}
_NOT_SEEN = Text("?", "bold yellow")
TEXT_WIDTH_COLUMNS = 120
"""Longer lines are hard to read, however wide the terminal."""


def doctor(
    cluster: ClusterOption = None,
    shard: Annotated[
        list[str] | None, typer.Option(help="Examine this shard only; repeat for more.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Examine every shard: what is wrong, why it matters, the command that mends it, the runbook.

    Only reads, and needs no superuser. Exits with 0 if nothing worse than notes was found, 1 after warnings, 3 after
    critical findings.
    """
    config = find_cluster(cluster)
    out = console()
    waiting = out.status("examining", spinner="dots") if out.is_terminal and not json else nullcontext()
    with waiting:
        report = examine(config, shard or ())
    if json:
        print_json(plain(report))
    else:
        _print(out, report)
    if report.severity is Severity.CRITICAL:
        raise typer.Exit(EXIT_CRITICAL)
    if report.severity is Severity.WARNING:
        raise typer.Exit(EXIT_WARNING)


def plain(report: Report) -> dict[str, object]:
    """The report for programs."""
    return {
        "cluster": report.cluster,
        "severity": None if report.severity is None else report.severity.word,
        "shards": list(report.shards),
        "examined": list(report.examined),
        "seconds": round(report.seconds, 3),
        "findings": [
            {
                "check": one.check, "severity": one.severity.word, "shard": one.shard, "what": one.what,
                "why": one.why, "mend": list(one.mend), "runbook": one.runbook,
            }
            for one in report.findings
        ],
        "unseen": [
            {"check": one.check, "shard": one.shard, "why": one.why, "mend": one.mend} for one in report.unseen
        ],
    }  # fmt: skip


def _print(out: Console, report: Report) -> None:
    count = f"{len(report.shards)} shards" if len(report.shards) > 1 else f"shard {', '.join(report.shards)}"
    slots = f", {report.slots} slots" if report.slots else ""
    took = f" · examined in {duration(report.seconds)}"
    out.print(Text.assemble("cluster ", (report.cluster, "bold"), (f" · {count}{slots}{took}", "dim")))
    out.print()
    for family in FAMILIES:
        _print_family(out, family, report)
    if report.unseen:
        _print_unseen(out, report.unseen)
    out.print()
    out.print(_verdict(report))


def _checks(family: Family) -> list[str]:
    names = [check.name for check in family.checks]
    return [*names, WRONG_DATABASE] if family is FAMILIES[0] else names


def _print_family(out: Console, family: Family, report: Report) -> None:
    found = report.of(_checks(family))
    worst = max((finding.severity for finding in found), default=None)
    mark, says = _MARKS[worst], family.says if worst is None else _count(found)
    if worst is None and report.silent and family is not FAMILIES[0]:
        mark = _NOT_SEEN
        alone = len(report.silent) == len(report.shards)
        says = "not seen" if alone else f"{says}; not seen: {', '.join(report.silent)}"
    out.print(Text.assemble(mark, " ", (f"{family.name:13}", "bold"), (says, "dim")), soft_wrap=True)
    for finding in _together(found):
        _print_finding(out, *finding)


def _count(found: Sequence[Finding]) -> str:
    parts: list[str] = []
    for severity in sorted(Severity, reverse=True):
        number = sum(finding.severity is severity for finding in found)
        if number:
            word = severity.word if severity is Severity.CRITICAL or number == 1 else f"{severity.word}s"
            parts.append(f"{number} {word}")
    return ", ".join(parts)


def _together(found: Sequence[Finding]) -> list[tuple[Finding, list[str]]]:
    """Findings that differ by their shard (and so by their commands) only are shown once, with one shard's commands."""
    groups: dict[tuple[str, str], tuple[Finding, list[str]]] = {}
    for finding in found:
        _, shards = groups.setdefault((finding.check, finding.what), (finding, []))
        if finding.shard is not None:
            shards.append(finding.shard)
    return list(groups.values())


def _print_finding(out: Console, finding: Finding, shards: Sequence[str]) -> None:
    mark = _MARKS[finding.severity]
    where = f"{', '.join(shards)}: " if shards else ""
    _print_wrapped(out, Text.assemble("  ", mark, " "), Text.assemble((where, "bold"), finding.what))
    _print_wrapped(out, Text("      why  ", "dim"), Text(finding.why))
    for at, command in enumerate(finding.mend):
        # One line however long: to be pasted.
        out.print(
            Text.assemble(("      do   " if at == 0 else "           ", "dim"), (command, "cyan")), soft_wrap=True
        )
    if len(shards) > 1:
        out.print(Text(f"           that is for {shards[0]}; --shard NAME shows another's", "dim"), soft_wrap=True)
    out.print(Text.assemble(("      see  ", "dim"), (finding.runbook, "dim")), soft_wrap=True)
    out.print()


def _print_wrapped(out: Console, lead: Text, text: Text) -> None:
    """Text beside its lead, in lines that fit."""
    for at, line in enumerate(text.wrap(out, max(min(out.width, TEXT_WIDTH_COLUMNS) - len(lead), 20))):
        line.rstrip()
        out.print((lead if at == 0 else Text(" " * len(lead))) + line, soft_wrap=True)


def _print_unseen(out: Console, unseen: Sequence[Unseen]) -> None:
    out.print()
    out.print(Text("not seen", "bold"))
    for one in unseen:
        lead = Text.assemble("  ? ", (f"{one.shard} ", "bold"), (f"{one.check}: ", "dim"))
        _print_wrapped(out, lead, Text(one.why))
    for mend in dict.fromkeys(one.mend for one in unseen if one.mend):
        out.print(Text.assemble(("      do   ", "dim"), (mend, "cyan")), soft_wrap=True)


def _verdict(report: Report) -> Text:
    if not report.findings:
        return Text("nothing found", "bold green")
    style = {Severity.CRITICAL: "bold red", Severity.WARNING: "bold yellow", Severity.NOTE: "bold green"}
    assert report.severity is not None
    return Text.assemble((_count(report.findings), style[report.severity]), (f"  ·  {RUNBOOK}", "dim"))
