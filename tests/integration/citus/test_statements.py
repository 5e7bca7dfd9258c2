"""Every statement of the engine on a node of a Citus cluster: it can be planned, and needs no other node."""

from __future__ import annotations

import re

import psycopg
import pytest

from sharded_wf.cluster.directory import load_map
from sharded_wf.postgres.queries import Query, load
from sharded_wf.postgres.statements import Statement, on_citus
from sharded_wf.routing import slot_schema
from tests.support.cluster import TestCluster

FAMILIES = (
    "attributes", "claims", "events", "fleet", "leases", "messages", "outcomes", "repair", "retention", "slots",
    "starts", "steps", "timers", "workflows",
)  # fmt: skip
FINE = (psycopg.errors.NotNullViolation, psycopg.errors.IndeterminateDatatype)
"""Null stands for every parameter: some statements mind, which shows that they were planned."""


def statements(schema: str) -> list[tuple[str, str]]:
    """Their names, and their words on Citus."""
    found: list[tuple[str, str]] = []
    for family in FAMILIES:
        for query in load(family).values():
            filled = Query(query.name, query.text.replace("{number}", "3").replace("{table}", "ready"))
            for words in on_citus(Statement(filled, schema)):
                found.append((f"{family}.{words.query.name}", words.query.on(schema)))
    return found


def test_every_statement_can_be_planned_and_stays_on_its_node(two_shards: TestCluster) -> None:
    schema = slot_schema(load_map(two_shards.config).shard_map.slots_of(two_shards.name(1))[0])
    elsewhere: set[str] = set()
    refused: dict[str, str] = {}
    with psycopg.connect(two_shards.direct[0], autocommit=True, cursor_factory=psycopg.RawCursor) as conn:
        here, said = conn.info.port, list[str]()
        conn.add_notice_handler(lambda note: said.append(f"{note.message_primary} {note.message_detail}"))
        conn.execute("set citus.log_remote_commands = on")
        for name, text in statements(schema):
            said.clear()
            nulls = [None] * max([int(number) for number in re.findall(r"\$(\d+)", text)], default=0)
            try:
                if text.startswith("vacuum"):
                    conn.execute(text.encode())
                else:
                    with conn.transaction(force_rollback=True):
                        conn.execute(text.encode(), nulls)
            except FINE:
                pass
            except psycopg.Error as error:
                if error.sqlstate != "WF001":  # the fence
                    refused[name] = str(error)
            ports = {int(port) for line in said for port in re.findall(r"on server \S+:(\d+)", line)}
            if ports - {here}:
                elsewhere.add(name)
    assert refused == {}
    assert elsewhere == set()


@pytest.mark.parametrize("name", ["claim", "delete_old"])
def test_one_of_several_statements_answers(name: str) -> None:
    family = load("claims" if name == "claim" else "retention")
    said = [words.query.name for words in on_citus(Statement(family[name], "wf_0000"))]
    assert len(said) > 1
    assert [one for one in said if "__" not in one] == [name]
