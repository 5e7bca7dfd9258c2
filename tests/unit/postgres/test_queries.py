"""The statements of ``sql/``: the loader's format, and that every file keeps it."""

from __future__ import annotations

import re

import pytest

from sharded_wf.postgres.queries import Query, SqlFileError, load, load_migrations, parse, sql_root

FAMILIES = sorted(path.name.removesuffix(".sql") for path in (sql_root() / "queries").iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_statement_is_named_and_filled(family: str) -> None:
    queries = load(family)
    assert queries
    for name, query in queries.items():
        assert query.name == name
        filled = query.on("wf_0007")
        assert "{slot}" not in filled
        assert "{control}" not in filled
        numbers = {int(number) for number in re.findall(r"\$(\d+)", filled)}
        assert numbers == set(range(1, len(numbers) + 1)), f"{family}.{name} skips a parameter"


def test_a_file_is_a_row_of_named_statements() -> None:
    text = """-- A comment on the file.

-- name: first
-- Why it is so.
select '{"a": {}}'::json -- stays
from {slot}.workflow
where id = $1;

-- name: second
select {control}.fence($1)
"""
    queries = parse(text, "x.sql")
    assert list(queries) == ["first", "second"]
    assert queries["first"].on("wf_0003") == (
        "select '{\"a\": {}}'::json -- stays\nfrom wf_0003.workflow\nwhere id = $1"
    )
    assert queries["second"].on() == "select wf_control.fence($1)"


def test_a_statement_is_filled_once_per_schema() -> None:
    query = Query("q", "select from {slot}.workflow")
    assert query.on("wf_0001") is query.on("wf_0001")
    assert query.on("wf_0001") != query.on("wf_0002")


def test_a_statement_of_a_slot_needs_its_schema() -> None:
    with pytest.raises(ValueError, match="'q' runs on a slot"):
        Query("q", "select from {slot}.workflow").on()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("select 1", "before the first"),
        ("-- name: a\nselect 1\n-- name: a\nselect 2", "x.sql:3: a second query is named 'a'"),
        ("-- name: a\n-- only words\n-- name: b\nselect 1", "'a' is empty"),
        ("-- name: A b\nselect 1", "no name"),
        ("-- name:\nselect 1", "no name"),
        ("-- name: a\nselect 1;\nselect 2;", "more than one statement"),
    ],
)
def test_mistakes_are_named(text: str, complaint: str) -> None:
    with pytest.raises(SqlFileError, match=complaint):
        parse(text, "x.sql")


def test_a_family_that_does_not_exist_is_named() -> None:
    with pytest.raises(SqlFileError, match="'nosuch'"):
        load("nosuch")


def test_migrations_are_numbered_from_one() -> None:
    for migrations in (load_migrations("control"), load_migrations("slot")):
        assert [migration.version for migration in migrations] == list(range(1, len(migrations) + 1))
        assert migrations[0].phase == "pre"
    assert load_migrations("slot")[0].statements("wf_0007")[0] == "create schema wf_0007"
    control = load_migrations("control")[0].statements()
    assert control[0] == "create schema wf_control"
    (fence,) = [statement for statement in control if "function wf_control.fence" in statement]
    assert fence.endswith("end\n$$")


def test_what_citus_is_told_stands_for_statements_with_the_same_parameters() -> None:
    def parameters(text: str) -> set[str]:
        return set(re.findall(r"\$\d+", text))

    names = ("claims", "messages", "moves", "outcomes", "repair", "retention", "starts", "steps")
    families = [load(name) for name in names]
    for name, variant in load("on_citus").items():
        (original,) = [family[answer] for family in families if (answer := name.partition("__")[0]) in family]
        assert parameters(variant.text) == parameters(original.text), name
