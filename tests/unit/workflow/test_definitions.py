"""What the decorators accept, refuse and make."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharded_wf import App, DefinitionError, OutsideWorkflow, Retry, UnstorableValue, current
from tests.unit.workflow.memory_host import run_workflow


def test_names_are_the_apps_and_the_functions() -> None:
    app = App("shop", version="7")

    @app.workflow(queue="slow")
    async def checkout(order_id: str, cents: int = 5) -> str:
        return order_id

    @app.workflow(name="other")
    def by_hand() -> None: ...

    @app.step(name="charge-card")
    async def charge() -> None: ...

    assert list(app.workflows) == ["shop/checkout", "shop/other"]
    assert list(app.steps) == ["charge-card"]
    assert app.capability == "shop@7"
    assert App("shop").capability == "shop"
    bound = checkout.bind("o-1")
    assert (bound.name, bound.capability, bound.queue) == ("shop/checkout", "shop@7", "slow")
    assert bound.input == checkout.bind(cents=5, order_id="o-1").input == b'["o-1",5]'
    assert bound.result.decode(b'"text"') == "text"
    assert checkout.__name__ == "checkout"
    app.check()


def test_bound_values_are_checked_at_the_callers_line() -> None:
    app = App("shop")

    @app.workflow
    async def checkout(order_id: str, price: float) -> None: ...

    with pytest.raises(TypeError, match=r"shop/checkout\(\): missing a required argument: 'price'"):
        checkout.bind("o-1")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with pytest.raises(UnstorableValue, match=r"the input of shop/checkout: \.price is nan"):
        checkout.bind("o-1", float("nan"))
    bound: Any = checkout.bind("o-1", 1)
    with pytest.raises(AttributeError):
        bound.name = "other"


def test_methods_and_other_callables_are_refused() -> None:
    app = App("refuses")

    class Shop:
        def charge(self) -> None: ...

        @staticmethod
        def static() -> None: ...

    async def generator() -> AsyncGenerator[int, None]:
        yield 1

    for function in (Shop.charge, Shop().charge, Shop.static, Shop.__dict__["static"], print, lambda: None, generator):
        with pytest.raises(DefinitionError):
            app.step(function)
        with pytest.raises(DefinitionError):
            app.workflow(function)
    with pytest.raises(DefinitionError, match="is a method"):

        class Other:  # pyright: ignore[reportUnusedClass]
            @app.step
            def method(self) -> None: ...

    with pytest.raises(DefinitionError, match="takes 'self'"):

        @app.step
        def pretends(self: object) -> None: ...

    assert not app.steps
    assert not app.workflows


def test_duplicate_names_fail_at_import_and_name_both() -> None:
    app = App("twice")

    @app.step
    def one() -> None: ...

    with pytest.raises(DefinitionError, match=r"two steps are named 'one'.*one and .*second.*name="):

        @app.step(name="one")
        def second() -> None: ...

    @app.workflow
    def flow() -> None: ...

    with pytest.raises(DefinitionError, match="two workflows are named 'twice/flow'"):
        app.workflow(name="flow")(one.function)


@pytest.mark.parametrize("name", ["", "a/b", "a@1", "x" * 300, "line\nbreak"])
def test_bad_app_names(name: str) -> None:
    with pytest.raises(DefinitionError):
        App(name)


def test_annotations_are_resolved_when_needed_and_checked_on_request() -> None:
    app = App("annotations")

    @dataclass
    class Order:
        number: int

    @app.workflow
    async def local(order: Order) -> Later:
        return Later(order.number)

    @dataclass
    class Later:
        number: int

    assert local.bind(Order(3)).input == b'[{"number":3}]'
    assert run_workflow(app, local.bind(Order(3))) == Later(3)

    @app.workflow
    async def broken() -> Missing: ...  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable, reportUnknownParameterType]

    with pytest.raises(DefinitionError, match=r"annotations/broken: its annotations can't be resolved: .*Missing"):
        app.check()

    ambiguous = App("ambiguous")

    @ambiguous.workflow
    async def either() -> Order | Later: ...  # type: ignore[empty-body]

    with pytest.raises(DefinitionError, match="can't be stored as JSON"):
        ambiguous.check()


def test_all_kinds_of_parameters_reach_the_function() -> None:
    app = App("parameters")

    @app.workflow
    async def shows(a: int, /, b: int = 2, *rest: timedelta, c: list[int] | None = None, **more: float) -> str:
        return repr((a, b, rest, c, more))

    assert run_workflow(app, shows.bind(1)) == "(1, 2, (), None, {})"
    result = run_workflow(app, shows.bind(1, 5, timedelta(1), c=[1], x=1))
    assert result == "(1, 5, (datetime.timedelta(days=1),), [1], {'x': 1.0})"


def test_lifespan_state_is_reachable_and_there_is_one() -> None:
    app = App("lifespan")

    @app.lifespan
    async def lifespan(app: App) -> AsyncIterator[dict[str, str]]:
        yield {"opened": app.name}

    @app.step
    async def reads() -> str:
        return str(current().state["opened"])

    @app.workflow
    async def flow() -> list[str]:
        return [await reads(), current().workflow_id, current().workflow_name, str(current().attempt)]

    async def open_it() -> Any:
        async with app.open_lifespan() as state:
            return state

    state = asyncio.run(open_it())
    assert state == {"opened": "lifespan"}
    assert run_workflow(app, flow.bind(), state=state) == ["lifespan", "w", "lifespan/flow", "1"]
    with pytest.raises(DefinitionError, match="already"):
        app.lifespan(lifespan)
    with pytest.raises(DefinitionError, match="yields"):
        App("x").lifespan(print)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_current_outside_says_so() -> None:
    with pytest.raises(OutsideWorkflow, match="neither a workflow nor a step"):
        current()


def test_a_workflow_has_no_idempotency_key() -> None:
    app = App("keyless")

    @app.workflow
    async def flow() -> str:
        return current().idempotency_key

    with pytest.raises(OutsideWorkflow, match="only a step"):
        run_workflow(app, flow.bind())


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"first": -1},
        {"first": "1 s"},
        {"factor": 0.5},
        {"jitter": 2},
        {"never": ValueError},
        {"cap": float("nan")},
    ],
)
def test_retries_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        Retry(**options)


def test_timeouts_that_make_no_sense() -> None:
    with pytest.raises(DefinitionError, match="timeout"):
        App("x").step(timeout=0)(_nothing)


def _nothing() -> None: ...


@given(
    st.floats(0, 1000),
    st.floats(1, 10),
    st.floats(0, 5000),
    st.floats(0, 1),
    st.integers(1, 10_000),
    st.floats(0, 1, exclude_max=True),
)
def test_retry_delays_stay_under_the_cap(
    first: float, factor: float, cap: float, jitter: float, attempt: int, chance: float
) -> None:
    retry = Retry(attempts=None, first=first, factor=factor, cap=timedelta(seconds=cap), jitter=jitter)
    delay = retry.delay_us(attempt, chance)
    assert 0 <= delay <= cap * 1e6 + 1
    assert retry.delay_us(attempt, 0.0) >= delay
    assert retry.allows(attempt, ValueError())
    assert not retry.allows(attempt, UnstorableValue())


def test_a_first_delay_is_not_cut_short_by_a_cap_that_nobody_chose() -> None:
    assert Retry(first=timedelta(hours=1), jitter=0).delay_us(3) == 3600 * 1_000_000
    assert Retry(first=1, jitter=0).delay_us(20) == 60 * 1_000_000


def test_what_is_no_retry_and_no_lifespan_says_what_to_write() -> None:
    app = App("shop")
    with pytest.raises(DefinitionError, match=r"step 'charge': retry=5: write retry=Retry\(attempts=\.\.\.\)"):

        @app.step(retry=cast("Retry", 5))
        def charge() -> None: ...

    @asynccontextmanager
    async def wrapped(app: Any) -> AsyncGenerator[None]:
        yield

    async def alone() -> AsyncGenerator[None]:
        yield

    for refused, said in ((wrapped, "leave @asynccontextmanager out"), (alone, "alone takes one argument, the app")):
        with pytest.raises(DefinitionError, match=said):
            app.lifespan(cast("Any", refused))


def test_an_annotation_that_json_can_not_hold_is_found_at_its_parameter() -> None:
    app = App("shop")

    class Mixed(Enum):
        ONE = 1
        TWO = "two"

    @app.workflow
    async def paint(size: int, colour: Mixed) -> None: ...

    with pytest.raises(DefinitionError, match=r"shop/paint, parameter 'colour': .*Mixed can't be stored"):
        app.check()
