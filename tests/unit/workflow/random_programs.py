"""A workflow that is told what to do: a tree of steps, sleeps, timeouts and ways to run several at once.

What it asks for depends on the order in which results arrive, so that a replay in another order would be noticed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any

from sharded_wf.workflow.app import App

DELAYS = (0.0, 1.0, 1.5, 2.0, 3.0)
app = App("crash")
ran: Counter[str] = Counter()


@app.step
async def work(label: str, delay: float) -> str:
    ran[label] += 1
    await asyncio.sleep(delay)
    if label.endswith("!"):
        raise ValueError(label)
    return f"<{label}>"


async def interpret(program: Any, path: str, log: list[str]) -> str:
    """Run a program tree; what it does depends on the order in which results arrive, through ``log``."""
    kind, *rest = program
    if kind == "step":
        result = await work(path, rest[0])
    elif kind == "fail":
        try:
            result = await work(path + "!", rest[0])
        except ValueError as error:
            result = f"failed {error}"
    elif kind == "sleep":
        await asyncio.sleep(rest[0])
        result = "slept"
    elif kind == "sequence":
        result = "".join([await interpret(part, f"{path}.{n}", log) for n, part in enumerate(rest[0])])
    elif kind == "gather":
        parts = [interpret(part, f"{path}.{n}", log) for n, part in enumerate(rest[0])]
        result = "|".join(await asyncio.gather(*parts))
    elif kind == "completed":
        parts = [interpret(part, f"{path}.{n}", log) for n, part in enumerate(rest[0])]
        result = ">".join([await part for part in asyncio.as_completed(parts)])
    elif kind == "timeout":
        try:
            result = await asyncio.wait_for(interpret(rest[1], f"{path}.t", log), rest[0])
        except TimeoutError:
            result = "late"
    elif kind == "group":
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(interpret(p, f"{path}.{n}", log)) for n, p in enumerate(rest[0])]
        result = "&".join(task.result() for task in tasks)
    else:  # the first of several; the others are cancelled
        tasks = [asyncio.create_task(interpret(p, f"{path}.{n}", log)) for n, p in enumerate(rest[0])]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        result = "first " + ",".join(sorted(task.result() for task in done))
    log.append(path)
    # What is asked for next depends on how many things happened before: replay must give back the same order.
    if len(log) % 3 == 0:
        result += await work(f"extra after {'/'.join(log[-2:])}", 0.5)
    return result


@app.workflow
async def program(tree: Any) -> list[str]:
    log: list[str] = []
    return [await interpret(tree, "p", log), *log]


def random_tree(random: Random, depth: int = 3) -> Any:
    """A program; the same for the same state of ``random`` on every Python."""
    delay = random.choice(DELAYS)
    if depth == 0 or random.random() < 0.25:
        return [random.choice(["step", "fail", "sleep"]), delay]
    kind = random.choice(["sequence", "gather", "group", "first", "timeout", "timeout"])
    if kind == "timeout":
        return [kind, delay, random_tree(random, depth - 1)]
    return [kind, [random_tree(random, depth - 1) for _ in range(random.randint(1, 3))]]
