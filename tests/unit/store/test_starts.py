"""How starts share statements: what each costs is the statement more than its rows."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from sharded_wf.limits import INLINE_INPUT_MAX_BYTES
from sharded_wf.model.workflow import Start
from sharded_wf.postgres import binary
from sharded_wf.store.starts import start_statements

SCHEMA = "wf_0001"
NOW = 1_800_000_000_000_000


@dataclass(frozen=True)
class Form:
    changes: dict[str, object]
    statements: int


FORMS = {
    "small": Form({}, 1),
    "with a large input": Form({"input": b'"%s"' % (b"x" * INLINE_INPUT_MAX_BYTES)}, 2),
    "delayed": Form({"not_before": NOW}, 2),
    "with a deadline": Form({"deadline": NOW}, 2),
}


def child(number: int, parent: str | None, **changes: object) -> Start:
    return replace(Start(f"c-{number}", "shop/ship", "shop", "default", 0, b"[]", parent_id=parent), **changes)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_children_of_many_parents_share_a_statement(form: Form) -> None:
    starts = [child(number, f"p-{number}", **form.changes) for number in range(5)]
    statements, counted = start_statements(SCHEMA, starts, NOW)
    assert (len(statements), len(counted)) == (form.statements, 1)
    assert binary.text_array([f"p-{number}" for number in range(5)]) in statements[-1].params


def test_what_has_no_parent_goes_the_shortest_way() -> None:
    statements, _ = start_statements(SCHEMA, [child(1, None), child(2, None), child(3, "p")], NOW)
    assert [len(statement.params) for statement in statements] == [7, 8]


def test_those_that_never_ran_tell_their_own_parent() -> None:
    stillborn = (b'"error"', b'"outcome"')
    starts = [child(number, f"p-{number % 2}", stillborn=stillborn) for number in range(4)]
    statements, counted = start_statements(SCHEMA, starts, NOW)
    assert len(counted) == 2
    assert [statement.params[6] for statement in statements if len(statement.params) > 2] == [b"p-0", b"p-1"]
