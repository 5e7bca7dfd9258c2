"""One app in two versions, for the engine's tests: what was open when the code changed, and what lives long."""

from __future__ import annotations

from collections.abc import Iterable

from sharded_wf import App, continue_as_new, current, patched, receive
from tests.support import flows


def make(version: str, upgrades: Iterable[str] = ()) -> App:
    """The app's code as of a version."""
    app = App("evolving", version=version, upgrades=upgrades)
    app.lifespan(flows.open_ledger)

    @app.step
    async def note(number: int) -> str:
        token: str = await current().state.write(number)
        return token

    @app.workflow
    async def order() -> list[str]:
        """Version 2 notes 20 where version 1 noted 2; both wait in between."""
        await note(1)
        seen = [version]
        await receive("go", int)
        if version == "2" and patched("twenty"):
            await note(20)
        else:
            await note(2)
        return [*seen, version]

    @app.workflow(pinned=True)
    async def audit() -> str:
        await note(1)
        await receive("go", int)
        return version

    @app.workflow
    async def steady(number: int, until: int) -> list[int]:
        """A step and a message in each run."""
        await note(number)
        await receive("go", int)
        if number < until:
            continue_as_new(steady.bind(number + 1, until))
        return [number, current().run]

    return app


first = make("1")
second = make("2", ["1"])
