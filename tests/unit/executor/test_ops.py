"""Ops that are saved together or not at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from sharded_wf.executor.held import Claim, Hold
from sharded_wf.executor.ops import FINISH, RECORD, Op, inseparable, size_of_flush, torn
from sharded_wf.limits import FLUSH_MAX_ROWS
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import Outcome

DONE = Outcome(Status.SUCCEEDED, b"1")


def hold(id_: str, parent: str | None = None) -> Hold:
    made = Hold(Claim(b"", 0, "wf_0000", 9), parent)
    made.run = cast(Any, SimpleNamespace(id=id_))
    return made


def test_a_child_and_its_heir_are_kept_together() -> None:
    grandparent, parent, child, other = hold("g"), hold("p", "g"), hold("c", "p"), hold("o")
    ops = [
        Op(RECORD, other),
        Op(RECORD, parent),
        Op(FINISH, child, outcome=DONE, heir=parent),
        Op(RECORD, grandparent),
        Op(FINISH, parent, outcome=DONE, heir=grandparent),
        Op(RECORD, other),
    ]
    groups = inseparable(ops)
    assert [[op.hold for op in group] for group in groups] == [
        [other, other],
        [grandparent, parent, child, parent],
    ]
    assert sorted(map(id, ops)) == sorted(id(op) for group in groups for op in group)


def test_no_flush_ends_between_a_child_and_its_heir() -> None:
    parent, child, other = hold("p"), hold("c", "p"), hold("o")
    pair = [Op(RECORD, parent), Op(FINISH, child, outcome=DONE, heir=parent)]
    before = [Op(RECORD, other)] * (FLUSH_MAX_ROWS - 1)
    assert size_of_flush([*before, *pair, *pair]) == FLUSH_MAX_ROWS + 1
    assert size_of_flush([*before, Op(RECORD, other), *pair]) == FLUSH_MAX_ROWS


def test_what_is_lost_takes_its_heirs_along_and_leaves_its_children_to_be_told() -> None:
    grandparent, parent, child, other = hold("g"), hold("p", "g"), hold("c", "p"), hold("o")
    ops = [
        Op(RECORD, parent),
        Op(FINISH, child, outcome=DONE, heir=parent),
        Op(RECORD, grandparent),
        Op(FINISH, parent, outcome=DONE, heir=grandparent),
        Op(RECORD, other),
    ]
    lost = {parent}
    left = torn(ops, lost)
    assert lost == {parent, grandparent}
    assert [(op.hold, op.heir) for op in left] == [(child, None), (other, None)]
    assert torn(ops, set()) == ops
