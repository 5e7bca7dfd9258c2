"""``patched``: two ways through a workflow's code, the old one for those that went it already.

A workflow that comes to ``patched("name")`` for the first time with nothing recorded ahead takes the new way, and says
so in its history with a mark, which replay finds. One that comes by on replay, with recorded results ahead and no mark,
went the old way and goes it again.
"""

from __future__ import annotations

from sharded_wf.errors import LimitExceeded
from sharded_wf.limits import NAME_LENGTH_MAX_BYTES
from sharded_wf.model.history import EntryKind
from sharded_wf.workflow.replay import Replay
from sharded_wf.workflow.whose_code import run_here


def patched(name: str) -> bool:
    """Whether this workflow takes the new way at the change called ``name``.

    True for workflows that come here for the first time, and on every replay of those; False for those that came by
    here before the change was made. Within one workflow the answer to one name never changes. Write
    ``if patched("name"):`` around the new code and ``else:`` around the old; docs/versions.md says how to remove it.

    Works in ``async def`` and ``def`` workflows, costs one recorded row, and waits for nothing. Raises
    :class:`OutsideWorkflow` in a step or outside a workflow, :class:`LimitExceeded` for a name that can't be stored.
    """
    run = run_here("patched")
    waits = run.some_waits()
    if waits.patches is None:
        waits.patches = {entry.name: True for entry in run.history.entries if entry.kind is EntryKind.PATCH}
    taken = waits.patches.get(name)
    if taken is None:
        if not name or len(name.encode()) > NAME_LENGTH_MAX_BYTES:
            raise LimitExceeded(f"patched({name!r}): a name is text of 1 to {NAME_LENGTH_MAX_BYTES} bytes")
        if run.replay is None:
            run.replay = Replay(run.history)
        taken = waits.patches[name] = run.replay.is_new(run.history)
        if taken:
            run.mark(EntryKind.PATCH, name)
    return taken


def deprecate_patch(name: str) -> None:
    """Stands where ``patched(name)`` stood, once no open workflow goes the old way and the old code is gone.

    It keeps new workflows marked, so that executors which still run the code with ``patched`` understand them; when
    there are no such executors any more, remove it. Raises as :func:`patched`.
    """
    patched(name)
