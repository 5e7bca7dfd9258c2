"""Workflows that set attributes."""

from __future__ import annotations

from sharded_wf import set_attributes
from tests.support.flows import app, note

__all__ = ["app"]


@app.workflow
async def staged(count: int) -> int:
    """An attribute after each step; at last one is removed."""
    await set_attributes(temporary=True)
    for number in range(count):
        await note(number)
        await set_attributes(stage=number, label=f"stage {number}")
    await set_attributes(temporary=None)
    return count


@app.workflow
def sync_staged(stage: int) -> int:
    set_attributes.blocking(stage=stage)
    return stage
