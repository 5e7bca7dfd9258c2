"""How long things are kept: what is understood, what is refused, and how the walks go."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from sharded_wf import ClusterConfig, ConfigError, Retention
from sharded_wf.limits import RETENTION_REWALK_SECONDS
from sharded_wf.maintenance.retention import Walk
from sharded_wf.retention import parse_age
from sharded_wf.store.retention import START

SHARD = '[cluster]\nname = "shop"\n[[shard]]\nname = "pg1"\ndsn = "host=a"\n'


@pytest.mark.parametrize(
    ("age", "seconds"),
    [("30 days", 2_592_000), ("12h", 43_200), ("1.5 hours", 5400), ("90 min", 5400), ("2 weeks", 1_209_600),
     ("1 m", 60), (60, 60), (timedelta(days=1), 86_400), ("forever", None), (None, None), ("3600 s", 3600)],
)  # fmt: skip
def test_ages(age: object, seconds: float | None) -> None:
    assert parse_age(age) == seconds


@pytest.mark.parametrize("age", ["", "30", "days", "30 dayz", "1 s", 0, -5, True, [], "-3 days", float("nan")])
def test_what_is_no_age_is_refused_with_what_to_write(age: object) -> None:
    with pytest.raises(ConfigError, match="30 days"):
        parse_age(age)


def test_the_file_says_it(tmp_path: Path) -> None:
    path = tmp_path / "shards.toml"
    text = '[retention]\ndefault = "30 days"\nexport = "out"\n[retention.queues]\nq = "1 h"\n'
    text += '[retention.workflows]\n"a/b" = "forever"\n'
    path.write_text(SHARD + text)
    assert ClusterConfig.from_file(path).retention == Retention("30 days", {"q": "1 h"}, {"a/b": "forever"}, "out")
    for bad, told in (
        ('default = "soon"', "default is 'soon'"),
        ("queue = 1", "'queue'"),
        ("queues = 1", "[retention.queues]"),
    ):
        path.write_text(f"{SHARD}[retention]\n{bad}\n")
        with pytest.raises(ConfigError) as caught:
            ClusterConfig.from_file(path)
        assert told in str(caught.value)
        assert str(path) in str(caught.value)


def test_a_walk_goes_on_and_a_full_walk_begins_again() -> None:
    walk = Walk(0, 3600.0)
    walk.advance((5, "a"), True, 10.0, 0.1)
    assert (walk.place, walk.due) == ((5, "a"), 0.0)
    walk.advance((6, "b"), False, 10.0, 0.1)
    assert walk.place == (6, "b")
    assert walk.due > 10.0
    full = Walk(0, 3600.0, full=True)
    full.advance((6, "b"), True, 10.0, 600.0)
    full.advance((7, "c"), False, 10.0, 600.0)
    assert full.place == START
    assert full.due > 10.0 + RETENTION_REWALK_SECONDS * 50  # it was expensive
