"""What is said to Citus is plain SQL, too: the answers have the columns of the statements for which it stands."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from sharded_wf.postgres.queries import Query, load
from tests.support import citus
from tests.support.cluster import TestCluster

FAMILIES = ("claims", "messages", "moves", "outcomes", "repair", "retention", "starts", "steps")


def columns(conn: psycopg.Connection[Any], query: Query, schema: str) -> list[int] | None:
    """The types of the answer; None if there is none. Null stands for every parameter."""
    text = query.on(schema)
    count = max([int(number) for number in re.findall(r"\$(\d+)", text)], default=0)
    with conn.transaction(force_rollback=True):
        cursor = conn.execute(text, [None] * count)
        return None if cursor.description is None else [column.type_code for column in cursor.description]


@pytest.mark.skipif(bool(citus.COORDINATOR), reason="plain Postgres runs both; Citus refuses the original")
def test_the_answers_have_the_same_columns(cluster: TestCluster) -> None:
    variants = load("on_citus")
    originals = {name: query for family in FAMILIES for name, query in load(family).items()}
    different: dict[str, tuple[list[int], list[int] | None]] = {}
    with psycopg.connect(cluster.direct[0], autocommit=True, cursor_factory=psycopg.RawCursor) as conn:
        for name in sorted(name for name in variants if "__" not in name):
            wanted = columns(conn, originals[name], "wf_0000")
            if wanted is not None and (found := columns(conn, variants[name], "wf_0000")) != wanted:
                different[name] = (wanted, found)
    assert different == {}
