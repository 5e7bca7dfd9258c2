"""How one workflow is shown: what it is, what it lived through and when, how it ended."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sharded_wf.cli.output import duration
from sharded_wf.clock import SECOND_US, Microseconds
from sharded_wf.model.attributes import Value
from sharded_wf.model.history import EMPTY_HISTORY, Entry, EntryKind, FailedAttempt, History
from sharded_wf.model.status import Status
from sharded_wf.serialization.exceptions import StoredError
from sharded_wf.store.workflows import Description

STATUS_STYLES = {
    Status.PENDING: "cyan",
    Status.RUNNING: "bold blue",
    Status.PARKED: "magenta",
    Status.SUCCEEDED: "green",
    Status.FAILED: "bold red",
    Status.CANCELLED: "yellow",
    Status.QUARANTINED: "bold red",
}
KIND_STYLES = {
    EntryKind.STEP: "green",
    EntryKind.TIMER: "magenta",
    EntryKind.MESSAGE: "cyan",
    EntryKind.CHILD: "blue",
    EntryKind.SEND: "cyan",
    EntryKind.CANCEL: "yellow",
    EntryKind.START: "blue",
    EntryKind.RESUME: "yellow",
    EntryKind.ATTRIBUTES: "cyan",
    EntryKind.PATCH: "dim",
    EntryKind.CONTINUED: "dim",
    EntryKind.EVENT: "cyan",
    EntryKind.EVENT_WAIT: "cyan",
    EntryKind.TIMEOUT: "yellow",
}
VALUE_MAX_CHARACTERS = 1_500
TRACEBACK_SHOWN_LINES = 12
ENTRIES_SHOWN_MAX = 200
BAR_MIN_COLUMNS = 10
BAR_MAX_COLUMNS = 40
BAR_FROM_COLUMNS = 72
"""A narrower terminal gets no bars."""
OTHER_COLUMNS = 4 + 7 + 9 + 8 + 6 * 2
"""What kind, times and the space between take."""
TOLD_MIN_COLUMNS = 12
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def draw(
    out: Console, found: Description, history: History, place: str, attributes: Mapping[str, Value] | None = None
) -> None:
    """Print the workflow for people; ``place`` says where it lies."""
    paused = ", paused" if found.paused and not found.status.is_final else ""
    out.print(Text.assemble((found.id, "bold"), "  ", status_text(found.status), (paused, "yellow")))
    out.print(_facts(found, place, attributes or {}))
    _print_value(out, "input", found.input)
    if history.entries or history.attempts:
        out.print()
        out.print(_chart(found, history, out.width))
        hidden = len(history.entries) - ENTRIES_SHOWN_MAX
        if hidden > 0:
            out.print(Text(f"… and {hidden:,} more; all of them with --json", "dim"))
    if found.output is not None:
        _print_value(out, "output", found.output)
    if found.error is not None:
        _print_error(out, found.error)


def status_text(status: Status) -> Text:
    """The state in its colour."""
    return Text(status.label, STATUS_STYLES[status])


def moment(at: Microseconds, now: Microseconds) -> str:
    """How long ago something was."""
    seconds = (now - at) / SECOND_US
    return f"{duration(seconds)} ago" if seconds >= 1 else "just now"


def read_error(data: bytes | None) -> StoredError | None:
    """A recorded error as it is stored; None if there is none that can be read."""
    try:
        return None if data is None else msgspec.json.decode(data, type=StoredError)
    except msgspec.MsgspecError:
        return None


def error_text(error: StoredError) -> str:
    """The error in one line, as Python writes it."""
    return f"{error.type}: {error.message}" if error.message else error.type


def as_plain(found: Description, history: History = EMPTY_HISTORY) -> dict[str, Any]:
    """The workflow for programs: times are ISO 8601 in UTC; input, output and errors are the stored JSON itself."""
    plain: dict[str, Any] = {
        "id": found.id,
        "name": found.name,
        "queue": found.queue,
        "priority": found.priority,
        "status": found.status.label,
        "paused": found.paused,
        "claims": found.claims,
        "deaths": found.deaths,
        "parent_id": found.parent_id,
        "executor": found.executor,
        "created_at": _iso(found.created_at),
        "started_at": _iso(found.started_at),
        "completed_at": _iso(found.completed_at),
        "input": _raw(found.input),
        "output": _raw(found.output),
        "error": _raw(found.error),
    }
    if history is not EMPTY_HISTORY:
        plain["history"] = [_entry_as_plain(entry) for entry in history.entries]
        plain["failed_attempts"] = [_attempt_as_plain(attempt) for attempt in history.attempts]
    return plain


def _entry_as_plain(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind.name.lower(),
        "name": entry.name,
        "step": entry.ordinal,
        "place": entry.place,
        "started_at": _iso(entry.started_at),
        "completed_at": _iso(entry.completed_at),
        "output": _raw(entry.output),
        "error": _raw(entry.error),
    }


def _attempt_as_plain(attempt: FailedAttempt) -> dict[str, Any]:
    return {
        "place": attempt.place,
        "attempt": attempt.attempt,
        "started_at": _iso(attempt.started_at),
        "failed_at": _iso(attempt.failed_at),
        "retry_at": _iso(attempt.retry_at),
        "error": _raw(attempt.error),
    }


def _iso(at: Microseconds | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at / SECOND_US, UTC).isoformat()


def _raw(data: bytes | None) -> msgspec.Raw | None:
    return None if data is None else msgspec.Raw(data)


# --- for people -----------------------------------------------------------------------------------------------------


def _facts(found: Description, place: str, attributes: Mapping[str, Value]) -> Table:
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row("workflow", found.name)
    rows.add_row("lies on", place)
    priority = f", priority {found.priority}" if found.priority else ""
    rows.add_row("queue", f"{found.queue}{priority}")
    if attributes:
        rows.add_row("attributes", Text(", ".join(f"{name}={value}" for name, value in attributes.items())))
    if found.parent_id is not None:
        rows.add_row("parent", found.parent_id)
    if found.executor is not None:
        rows.add_row("executor", found.executor)
    rows.add_row("created", _local(found.created_at))
    if found.started_at is not None:
        rows.add_row("started", f"{_local(found.started_at)}, after {_took(found.created_at, found.started_at)}")
    if found.completed_at is not None:
        took = _took(found.started_at or found.created_at, found.completed_at)
        rows.add_row("completed", f"{_local(found.completed_at)}, after {took}")
    if found.claims > 1:
        deaths = f"; its executor died {found.deaths} times since it last made progress" if found.deaths else ""
        rows.add_row("taken up", f"{found.claims} times{deaths}")
    return rows


@dataclass(frozen=True)
class _Line:
    """One line of the chart. Times are microseconds; ``end`` None: it is not over."""

    kind: EntryKind
    name: str
    begin: Microseconds
    end: Microseconds | None
    told: Text
    number: int | None = None
    """Of a result that is recorded: what ``fork`` calls it."""
    is_attempt: bool = False


def _chart(found: Description, history: History, width: int) -> Table:
    """Entries by the time they began, with their failed attempts below them, and a bar for each."""
    now = int(time.time() * SECOND_US)
    lines = list(_lines(history))[:ENTRIES_SHOWN_MAX]
    first = min([found.started_at or found.created_at, *(line.begin for line in lines)])
    last = max([found.completed_at or now, *(line.end or now for line in lines)], default=first)
    bar_columns = 0 if width < BAR_FROM_COLUMNS else min(BAR_MAX_COLUMNS, max(BAR_MIN_COLUMNS, width // 6))
    chart = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0), expand=False)
    chart.add_column("", justify="right", no_wrap=True)
    chart.add_column("", no_wrap=True)
    name_columns = min(max(16, width // 4), max((len(line.name) for line in lines), default=0))
    chart.add_column("", no_wrap=True, overflow="ellipsis", width=name_columns)
    chart.add_column("began", justify="right", no_wrap=True)
    chart.add_column("took", justify="right", no_wrap=True)
    if bar_columns:
        chart.add_column("", width=bar_columns, no_wrap=True)
    chart.add_column("result", no_wrap=True)
    told_columns = max(TOLD_MIN_COLUMNS, width - name_columns - bar_columns - OTHER_COLUMNS)
    for line in lines:
        style = "red" if line.is_attempt else KIND_STYLES[line.kind]
        cells = [
            Text("" if line.number is None else str(line.number), "dim"),
            Text("" if line.is_attempt else line.kind.name.lower(), "dim"),
            Text(line.name, "red" if line.is_attempt else "bold"),
            Text(f"+{duration((line.begin - first) / SECOND_US)}", "dim"),
            Text("…" if line.end is None else duration((line.end - line.begin) / SECOND_US)),
        ]
        if bar_columns:
            cells.append(Text(_bar(line.begin - first, (line.end or now) - first, last - first, bar_columns), style))
        line.told.truncate(told_columns, overflow="ellipsis")
        chart.add_row(*cells, line.told)
    return chart


def _lines(history: History) -> Iterator[_Line]:
    attempts: dict[int, list[FailedAttempt]] = {}
    for attempt in sorted(history.attempts, key=lambda attempt: (attempt.place, attempt.attempt)):
        attempts.setdefault(attempt.place, []).append(attempt)
    entries = [entry for entry in history.entries if entry.kind is not EntryKind.LOGGED]
    for entry in sorted(entries, key=lambda entry: (entry.started_at, entry.ordinal)):
        failed = attempts.pop(entry.place, [])
        error = read_error(entry.error)
        told = Text(_excerpt(entry.output), "dim") if error is None else Text(f"✗ {error_text(error)}", "red")
        begin = failed[0].started_at if failed else entry.started_at
        yield _Line(entry.kind, entry.name, begin, entry.completed_at, told, entry.ordinal)
        yield from _attempts(failed)
    for unfinished in attempts.values():
        told = Text("not done yet", "yellow")
        yield _Line(EntryKind.STEP, "(tried again)", unfinished[0].started_at, None, told)
        yield from _attempts(unfinished)


def _attempts(attempts: Sequence[FailedAttempt]) -> Iterator[_Line]:
    for attempt in attempts:
        error = read_error(attempt.error)
        told = Text(f"✗ {error_text(error)}" if error else "✗", "red")
        name = f"  attempt {attempt.attempt}"
        yield _Line(EntryKind.STEP, name, attempt.started_at, attempt.failed_at, told, is_attempt=True)


def _bar(begin: int, end: int, whole: int, columns: int) -> str:
    """A bar from begin to end on a scale of ``columns`` characters; at least something shows."""
    scale = columns * 8 / max(whole, 1)
    left = min(int(begin * scale), columns * 8 - 1)
    size = max(1, int(min(end * scale, columns * 8)) - left)
    # Characters have eighths only from their left edge; a begin within one is rounded down to it.
    before = left // 8
    full, part = divmod(size + left % 8 if size > 8 else size, 8)
    full = min(full, columns - before)
    return " " * before + "█" * full + (_EIGHTHS[part].strip() if before + full < columns else "")


def _print_value(out: Console, what: str, data: bytes | None) -> None:
    if data is None:
        return
    text = msgspec.json.format(data, indent=2).decode("utf-8", "replace")
    if len(data) + len(what) + 2 <= min(out.width, 100):
        out.print(Text.assemble((f"{what}  ", "dim"), data.decode("utf-8", "replace")))
        return
    if len(text) > VALUE_MAX_CHARACTERS:
        text = f"{text[:VALUE_MAX_CHARACTERS]} … ({len(data):,} bytes; all of it with --json)"
    out.print(Text(f"\n{what}", "dim"))
    out.print(Text(text))


def _print_error(out: Console, data: bytes) -> None:
    error = read_error(data)
    out.print(Text("\nerror", "dim"))
    if error is None:
        out.print(Text(_excerpt(data)))
        return
    out.print(Text(error_text(error), "bold red"))
    lines = error.traceback.rstrip().splitlines()
    if len(lines) > TRACEBACK_SHOWN_LINES:
        lines = ["  …", *lines[-TRACEBACK_SHOWN_LINES:]]
    out.print(Text("\n".join(lines), "dim"))


def _excerpt(data: bytes | None) -> str:
    text = "" if data is None else data[:300].decode("utf-8", "replace")
    return "" if text == "null" else text


def _local(at: Microseconds) -> str:
    return datetime.fromtimestamp(at / SECOND_US).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _took(begin: Microseconds, end: Microseconds) -> str:
    return duration(max(0, end - begin) / SECOND_US)
