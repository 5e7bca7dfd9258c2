"""The bound of a history: a warning in time, and an end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sharded_wf.errors import HistoryTooLong
from sharded_wf.limits import HISTORY_MAX_ENTRIES, HISTORY_WARN_ENTRIES

if TYPE_CHECKING:
    from sharded_wf.workflow.run import WorkflowRun

_log = logging.getLogger("sharded_wf.workflow")
_ADVICE = "let it continue_as_new() from time to time, or do parts of its work in child workflows"


def history_is_full(run: WorkflowRun, ordinal: int) -> bool:
    """Whether entry number ``ordinal`` is one too many: then the workflow fails, soon. Warns those that come near."""
    if ordinal <= HISTORY_MAX_ENTRIES:
        times, rest = divmod(ordinal, HISTORY_WARN_ENTRIES)
        if rest == 0 and times & (times - 1) == 0:
            _log.warning(
                "workflow %s has %d results recorded, of %d at most; every replay reads them all: %s",
                run.id, ordinal, HISTORY_MAX_ENTRIES, _ADVICE,
            )  # fmt: skip
        return False
    run.host.loop.call_soon(_fail, run)
    return True


def _fail(run: WorkflowRun) -> None:
    """From a plain callback: what was recorded may be in the middle of a turn of the workflow."""
    if run.outcome is None and not run.stopped:
        run.end(run.failed(HistoryTooLong(f"{run.id!r} wants more than {HISTORY_MAX_ENTRIES} results: {_ADVICE}")))
