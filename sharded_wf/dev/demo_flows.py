"""The app that the demo runs: it counts what a Python source tree defines, one workflow per file.

An ordinary app, as users write them: nothing in here knows that it is a demo, or that one of its executors is going to
be killed. Read it as an example. The same functions, called without any engine, are what the result is checked against.
"""

from __future__ import annotations

import ast
import asyncio
import io
import threading
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from sharded_wf.application import App
from sharded_wf.workflow.retry import Retry

app = App("demo")
_parsing = threading.Lock()
_KINDS = {ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "coroutine"}
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


class Source(msgspec.Struct, frozen=True):
    """A file as it was read. Bytes that are not in the encoding that it declares show as U+FFFD."""

    size_bytes: int
    text: str


class Definition(msgspec.Struct, frozen=True, array_like=True):
    """One ``class``, ``def`` or ``async def``, and the line where it begins."""

    kind: str
    name: str
    line: int


class Counts(msgspec.Struct, frozen=True):
    """What one file, or many, hold. ``invalid`` counts files that are no Python of this version; there are a few in the
    standard library, which its own tests use."""

    files: int = 0
    size_bytes: int = 0
    lines: int = 0
    classes: int = 0
    functions: int = 0
    coroutines: int = 0
    invalid: int = 0


@app.step
def read(path: str) -> Source:
    """Read a source file, in the encoding that it declares."""
    data = Path(path).read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    except SyntaxError:
        encoding = "utf-8"
    return Source(len(data), data.decode(encoding, "replace"))


# Where CPython (3.11, early 3.12) builds two syntax trees at once, and formatting a traceback also builds them, one of
# them can end in a SystemError. The lock keeps our own apart; for the rest there are retries.
@app.step(retry=Retry(attempts=5, first=0.1))
def parse(text: str) -> list[Definition] | None:
    """Parse a source text; its definitions, or None if it is no valid Python."""
    try:
        with _parsing:
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    return [
        Definition(_KINDS[type(node)], node.name, node.lineno)
        for node in _statements(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]


@app.step
def count(size_bytes: int, lines: int, definitions: list[Definition] | None) -> Counts:
    """Count the definitions of one file; None is a file without valid Python."""
    if definitions is None:
        return Counts(files=1, size_bytes=size_bytes, invalid=1)
    kinds = Counter(definition.kind for definition in definitions)
    return Counts(
        files=1,
        size_bytes=size_bytes,
        lines=lines,
        classes=kinds["class"],
        functions=kinds["function"],
        coroutines=kinds["coroutine"],
    )


@app.workflow
async def count_file(path: str) -> Counts:
    """Read, parse, count: three steps, and the result of each is saved before the next begins."""
    source = await read.in_thread(path)
    definitions = await parse.in_thread(source.text)
    return await count.in_thread(source.size_bytes, source.text.count("\n"), definitions)


@app.workflow
async def count_package(paths: list[str]) -> Counts:
    """Every file of a package as a child workflow, on whichever shard its ID belongs to, all at once."""
    return total(await asyncio.gather(*(count_file(path) for path in paths)))


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Every statement, however deep; expressions, which are most of a tree, hold no definitions."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for block in _BLOCKS:
            waiting += getattr(node, block, ())


def total(parts: Iterable[Counts]) -> Counts:
    """The sum of many counts."""
    sums = [0] * len(Counts.__struct_fields__)
    for part in parts:
        sums = [value + more for value, more in zip(sums, msgspec.structs.astuple(part), strict=True)]
    return Counts(*sums)


def count_file_plainly(path: str) -> Counts:
    """What ``count_file`` computes, by the same functions: a step outside a workflow is just its function."""
    source = read(path)
    return count(source.size_bytes, source.text.count("\n"), parse(source.text))
