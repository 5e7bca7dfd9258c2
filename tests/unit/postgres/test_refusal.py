"""What a body of a transaction may not say to Postgres, and what only looks like it."""

from __future__ import annotations

import pytest

from sharded_wf import TransactionRefused
from sharded_wf.postgres.refusal import refuse_ending

ENDING = [
    "commit", "COMMIT;", " end", "rollback", "ROLLBACK WORK", "abort transaction", "begin", "start transaction",
    "prepare transaction 'x'", "-- a comment\ncommit", "/* a */ commit", "select 1; commit", "select ';'; rollback",
    "select $$;$$; end", "rollback and chain", "commit prepared 'x'", "discard all", "select E'\\''; commit",
]  # fmt: skip
HARMLESS = [
    "select 'commit'", 'select 1 as "commit"', "rollback to savepoint s", "rollback work to s", "savepoint commit",
    "do $$ begin perform 1; end $$", "select case when true then 1 end", "-- commit", "prepare q as select 1",
    "select $x$ ; commit $x$", "insert into t values ('; commit')", "", ";", "select start from t",
]  # fmt: skip


@pytest.mark.parametrize("query", ENDING)
def test_refused(query: str) -> None:
    with pytest.raises(TransactionRefused, match="transaction"):
        refuse_ending(query)


@pytest.mark.parametrize("query", HARMLESS)
def test_harmless(query: str) -> None:
    refuse_ending(query)
