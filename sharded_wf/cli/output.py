"""How the commands print: tables for people, JSON for programs, errors on stderr.

Text that comes from outside (names, messages) is never printed as markup: ``[[shard]]`` would vanish.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sharded_wf.errors import ConfigError

PIPED_WIDTH_COLUMNS = 160
"""Tables that go into a file or another program are not squeezed into 80 columns."""


def console() -> Console:
    """The console of stdout, as it is now."""
    piped = not sys.stdout.isatty()
    return Console(width=PIPED_WIDTH_COLUMNS if piped else None, highlight=False, soft_wrap=piped)


def print_error(message: str) -> None:
    """One message on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), message))


def print_json(value: object) -> None:
    """A value made of dataclasses and plain data, as indented JSON."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def table(*columns: str, numbers: frozenset[str] = frozenset(), wraps: frozenset[str] = frozenset()) -> Table:
    """An empty table in the house style. The columns in ``numbers`` are aligned to the right; those in ``wraps`` give
    way when the terminal is narrow, the others keep to one line."""
    made = Table(box=None, header_style="bold dim", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(
            column, justify="right" if column in numbers else "left", no_wrap=column not in wraps, overflow="fold"
        )
    return made


def ranges(numbers: Iterable[int]) -> str:
    """Numbers for people: ``0-3, 7``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def duration(seconds: float) -> str:
    """A duration for people: ``3.2 ms``, ``4.1 s``, ``12 min``, ``5.0 h``, ``3.1 d``."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} d"


def confirm(yes: bool, question: str) -> None:
    """Ask, unless told not to."""
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("this asks before it acts; without a terminal, say --yes (or --dry-run)")
        typer.confirm(question, abort=True)
