"""How a status reads."""

from __future__ import annotations

from sharded_wf import Status


def test_people_read_a_word_and_rows_hold_a_number() -> None:
    assert str(Status.PARKED) == f"{Status.PARKED}" == "parked"
    assert f"{Status.FAILED:>8}" == "  failed"
    assert int(Status.PARKED) == 2
