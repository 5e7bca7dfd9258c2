"""``sharded-wf bench``: the measurements, which lie beside the package in a checkout and inside it once installed.

They are imported only when they are asked for: no other command pays for them, and no room of the product knows them.
"""

from __future__ import annotations

import importlib
from typing import Any

import typer

from sharded_wf.errors import BenchFailed

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_PLACES = ("sharded_wf.bench", "bench")


def bench(context: typer.Context) -> None:
    """Measure a cluster, and prove that nothing was lost on the way (run, ceiling, latency, scale, soak, ...)."""
    commands = _find()
    commands.app(args=context.args, prog_name="sharded-wf bench", standalone_mode=True)


def _find() -> Any:
    for place in _PLACES:
        try:
            return importlib.import_module(f"{place}.commands")
        except ModuleNotFoundError as error:
            if error.name not in (place, f"{place}.commands"):
                raise
    raise BenchFailed("the measurements are not here: install sharded-wf from a wheel, or run from a checkout")
