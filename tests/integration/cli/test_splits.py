"""``sharded-wf shards split``."""

from __future__ import annotations

import json

from tests.integration.cli.test_moves import slots
from tests.integration.cli.test_shards import Run, run, toml
from tests.integration.reshard.test_interrupted import COORDINATOR
from tests.support.processes import WorkerProcess

__all__ = ["run", "toml"]


def test_the_number_of_slots_is_doubled(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "4")
    code, out, _ = run("shards", "split", "-c", toml, "--dry-run")
    assert (code, "4 slots are split in two: 4 slots now, 8 then" in out) == (0, True)
    assert slots(run, toml) == {"pg1": [0, 2], "pg2": [1, 3]}
    code, _, err = run("shards", "split", "-c", toml)
    assert (code, "without a terminal, say --yes" in err) == (2, True)
    code, out, err = run("shards", "split", "1", "-c", toml, "--yes")  # one alone; then the others
    assert (code, err, "slot 1 is 5 and 9 now: 0 rows, no writes for" in out) == (0, "", True)
    code, out, err = run("shards", "split", "--until", "8", "-c", toml, "--yes")
    assert (code, err, "3 slots are split in two: 5 slots now, 8 then" in out) == (0, "", True)
    assert slots(run, toml) == {"pg1": [4, 6, 8, 10], "pg2": [5, 7, 9, 11]}
    assert "nothing to do: there are 8 slots" in run("shards", "split", "--until", "8", "-c", toml, "--yes")[1]
    assert "exists: 8 slots on 2 shards" in run("shards", "init", "-c", toml)[1]
    code, _, err = run("shards", "move", "9", "--to", "pg1", "-c", toml, "--yes")
    assert (code, err) == (0, "")
    assert "1 slot moves" in run("shards", "rebalance", "-c", toml, "--dry-run")[1]


def test_what_can_not_be_split_is_refused(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "4")
    run("shards", "split", "0", "-c", toml, "--yes")
    for arguments, complaint in {
        ("0",): "slot 0 was split; what it held is in 4 and 8",
        ("19",): "there is no slot 19",
        ("--resume", "--undo"): "one of the two",
    }.items():
        code, _, err = run("shards", "split", *arguments, "-c", toml, "--yes")
        assert (code, complaint in err) == (2, True), err
    assert "no split is unfinished" in run("shards", "split", "--resume", "-c", toml, "--yes")[1]


def test_a_split_that_hangs_is_seen_compared_and_settled(run: Run, toml: str) -> None:
    run("shards", "init", "-c", toml, "--slots", "4")
    for state, action, said in (
        ("draining", "--undo", "slot 0 stays one slot"),
        ("advancing to live", "--resume", "slot 0 is 4 and 8 now"),
    ):
        with WorkerProcess(COORDINATOR, toml, state, "run", "pg1") as coordinator:
            coordinator.wait_line(f"at {state}")
            code, _, err = run("shards", "split", "--resume", "-c", toml, "--yes")
            assert (code, "seems to be alive" in err) == (2, True)
            coordinator.kill()
        code, out, _ = run("shards", "status", "-c", toml)
        assert (code, "slot 0 on pg1, in two: draining, nobody drives it" in out) == (0, True)
        (plain,) = json.loads(run("shards", "status", "-c", toml, "--json")[1])["moves"]
        assert (plain["slot"], plain["splits"], plain["state"]) == (0, True, "draining")
        code, out, _ = run("shards", "verify", "0", "-c", toml)
        assert (code, "both sides of slot 0 are the same" in out) == (0, True)
        assert "slot 0 has an unfinished split" in run("shards", "split", "-c", toml, "--yes")[2]
        code, out, err = run("shards", "split", action, "-c", toml, "--yes")
        assert (code, err, said in out) == (0, "", True)
    assert "was split; what it held is in 4 and 8" in run("shards", "verify", "0", "-c", toml)[2]
    code, out, _ = run("shards", "verify", "8", "-c", toml)
    assert (code, "slot 8 lives on pg1, and nowhere else" in out) == (0, True)
