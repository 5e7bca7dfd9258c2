"""The open loop's starts are a Poisson process: the mean is the rate, and gaps are memoryless."""

from __future__ import annotations

import itertools
import math
import random
import statistics

from hypothesis import given
from hypothesis import strategies as st

from bench.client_process import arrivals

COUNT = 4_000


@given(st.floats(0.1, 50_000), st.floats(0, 1e6), st.integers())
def test_arrivals_are_a_poisson_process(rate: float, begin: float, seed: int) -> None:
    moments = list(itertools.islice(arrivals(rate, begin, random.Random(seed)), COUNT))
    gaps = [after - before for before, after in itertools.pairwise([begin, *moments])]
    assert min(gaps) >= 0
    mean = statistics.fmean(gaps)
    # Six standard errors of each estimate: of the mean, and of the share of gaps longer than it (1/e).
    assert abs(mean * rate - 1) < 6 / math.sqrt(COUNT)
    longer = sum(gap > 1 / rate for gap in gaps) / COUNT
    assert abs(longer - math.exp(-1)) < 6 * math.sqrt(math.exp(-1) * (1 - math.exp(-1)) / COUNT)


def test_the_same_seed_gives_the_same_moments() -> None:
    first = list(itertools.islice(arrivals(100, 0, random.Random(7)), 50))
    assert first == list(itertools.islice(arrivals(100, 0, random.Random(7)), 50))
    assert first != list(itertools.islice(arrivals(100, 0, random.Random(8)), 50))
