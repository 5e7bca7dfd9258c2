"""The workloads that differ in one feature, and what is made of their figures."""

from __future__ import annotations

import pytest

from bench import workloads
from bench.attribution import Attribution, Price, chosen, price_of, table_rows
from bench.features import FEATURES, PREFIX, STEP, WORKFLOW, find
from bench.result import Cpu
from sharded_wf.errors import ConfigError


def test_what_a_feature_is_more_than_stands_before_it() -> None:
    seen: set[str] = set()
    for feature in FEATURES:
        assert feature.base is None or feature.base in seen, feature.name
        assert feature.name not in seen
        seen.add(feature.name)


def test_each_feature_is_a_workload_whose_workflow_is_there() -> None:
    for feature in FEATURES:
        workload = find(f"{PREFIX}{feature.name}", 0)
        (item,) = workload.unit(0, lambda: ("a", "b"))
        bound = item[1] if isinstance(item, tuple) else item
        assert bound.name in workloads.app.workflows, feature.name
    assert find("noop", 0).name == "noop"
    with pytest.raises(ConfigError, match="no workload 'nothing'"):
        find("nothing", 0)


def test_a_feature_is_measured_with_what_it_is_more_than() -> None:
    assert [feature.name for feature in chosen(["each step more"])] == [WORKFLOW, STEP, "each step more"]
    assert chosen([]) == list(FEATURES)
    with pytest.raises(ConfigError, match="no feature 'magic'; there are: a workflow; a step;"):
        chosen(["magic"])


def test_a_price_is_the_difference_over_the_uses() -> None:
    more = FEATURES[2]
    whole = {STEP: Cpu(30.0, 20.0, 8.0), more.name: Cpu(46.0, 60.0, 8.4)}
    price = price_of(more, whole, {})
    assert price.cpu_us == Cpu(4.0, 10.0, 0.1) and price.bare_cpu_us is None
    first = price_of(FEATURES[0], {WORKFLOW: Cpu(30.0, 20.0, 8.0)}, {WORKFLOW: Cpu(25.0, 5.0, 4.0)})
    assert first == Price(WORKFLOW, None, Cpu(30.0, 20.0, 8.0), Cpu(25.0, 5.0, 4.0))
    _, rows = table_rows(Attribution(1.0, 1, 1, 1, (first, price), True, {}))
    assert rows == [
        [WORKFLOW, "30.0", "20.0", "8.0", "58.0", "34.0"],
        [more.name, "4.0", "10.0", "0.1", "14.1", "–"],
    ]
