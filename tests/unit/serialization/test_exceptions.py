"""Errors come back as their own class where that is safe, else with their text."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharded_wf import WorkflowCancelled, WorkflowFailed
from sharded_wf.limits import PAYLOAD_MAX_BYTES
from sharded_wf.model.status import Status
from sharded_wf.model.workflow import Outcome
from sharded_wf.serialization import decode_error, decode_outcome, encode_error, encode_outcome
from sharded_wf.serialization.exceptions import StoredError

made: list[str] = []


class Plain(Exception):
    class Inner(Exception):
        pass


class Changing(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text + "!")


class NotAnError:
    def __init__(self, *args: object) -> None:
        made.append("called")


def make_trouble(*args: object) -> None:
    made.append("called")


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - it is what is wanted
        return caught


@pytest.mark.parametrize(
    "error",
    [ValueError("a", 1), KeyError("k"), Plain("x"), Plain.Inner(1, [2]), TimeoutError(), FileNotFoundError(2, "no")],
    ids=repr,
)
def test_known_classes_come_back(error: Exception) -> None:
    again = decode_error(encode_error(raised(error)))
    assert type(again) is type(error)
    assert again.args == error.args
    assert any("test_exceptions.py" in note for note in again.__notes__)


def test_a_file_error_names_its_file() -> None:
    again = decode_error(encode_error(raised(FileNotFoundError(2, "no such file", "/x"))))
    assert type(again) is FileNotFoundError
    assert (again.errno, again.filename, str(again)) == (2, "/x", "[Errno 2] no such file: '/x'")


def test_a_group_brings_its_errors_along() -> None:
    inner = ExceptionGroup("inner", [KeyError("k"), Changing("x")])
    again = decode_error(encode_error(raised(ExceptionGroup("outer", [Plain("p"), inner]))))
    assert type(again) is ExceptionGroup
    assert again.message == "outer"
    plain, group = again.exceptions
    assert (type(plain), plain.args) == (Plain, ("p",))
    assert isinstance(group, ExceptionGroup)
    assert [type(one) for one in group.exceptions] == [KeyError, WorkflowFailed]
    assert type(decode_error(encode_error(raised(BaseExceptionGroup("b", [SystemExit(1)]))))) is WorkflowFailed


def test_notes_are_kept_and_tracebacks_do_not_pile_up() -> None:
    error = ValueError("x")
    error.add_note("hint")
    once = decode_error(encode_error(raised(error)))
    twice = decode_error(encode_error(once))
    assert once.__notes__[0] == "hint"
    assert len(once.__notes__) == len(twice.__notes__) == 2


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Changing("x"), "Changing: x!"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (StopIteration(3), "StopIteration: 3"),
        (ValueError(object), "ValueError: <class 'object'>"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "reason"), "UnicodeDecodeError"),
        (BaseExceptionGroup("several", [SystemExit()]), "BaseExceptionGroup: several"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_others_keep_their_text(error: BaseException, text: str) -> None:
    again = decode_error(encode_error(raised(error)))
    assert type(again) is WorkflowFailed
    assert text in str(again)
    assert "test_exceptions.py" in again.traceback_text


def test_a_failure_passed_on_still_names_the_original() -> None:
    first = decode_error(encode_error(raised(Changing("x"))))
    second = decode_error(encode_error(raised(first)))
    assert isinstance(first, WorkflowFailed)
    assert isinstance(second, WorkflowFailed)
    assert str(second) == str(first)
    assert second.traceback_text == first.traceback_text
    assert type(decode_error(encode_error(WorkflowCancelled("CancelledError", "why")))) is WorkflowCancelled
    assert str(decode_error(encode_error(WorkflowCancelled("WorkflowCancelled", "it was")))) == "it was"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (__name__, "NotAnError"),
        (__name__, "make_trouble"),
        (__name__, "missing"),
        ("os", "system"),
        ("builtins", "print"),
        ("builtins", "BaseException"),
        ("antigravity", "Error"),
        ("", ""),
        (__name__, "Plain.__class__"),
    ],
)
def test_a_stored_name_never_runs_code(module: str, name: str) -> None:
    made.clear()
    data = msgspec.json.encode(StoredError(name, module, "text", ["echo"]))
    assert type(decode_error(data)) is WorkflowFailed
    assert made == []
    assert "antigravity" not in sys.modules


def test_a_module_that_is_not_loaded_stays_so() -> None:
    code = (
        "import sys, msgspec\n"
        "from sharded_wf.serialization import decode_error\n"
        "data = msgspec.json.encode(dict(type='Error', module='wave', message='m', args=['m']))\n"
        "assert 'wave' not in sys.modules\n"
        "print(type(decode_error(data)).__name__, 'wave' in sys.modules)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60)
    assert said.stdout == "WorkflowFailed False\n", said.stderr


def test_errors_whose_own_methods_fail() -> None:
    class Nasty(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert "Nasty" in str(decode_error(encode_error(raised(Nasty("\ud800")))))
    assert "\\ud800" in str(decode_error(encode_error(raised(ValueError("\ud800")))))


@given(st.binary(max_size=40))
def test_reading_never_raises(data: bytes) -> None:
    assert isinstance(decode_error(data), Exception)


def test_an_error_larger_than_any_value_keeps_the_ends_of_its_message() -> None:
    stored = encode_error(ValueError("begin " + "x" * PAYLOAD_MAX_BYTES + " end"))
    assert len(stored) < PAYLOAD_MAX_BYTES // 100
    error = decode_error(stored)
    assert isinstance(error, WorkflowFailed)
    assert (error.message[:6], error.message[-4:]) == ("begin ", " end")


def test_long_tracebacks_are_cut() -> None:
    again = decode_error(encode_error(raised(Changing("x" * 100_000))))
    assert isinstance(again, WorkflowFailed)
    assert len(again.traceback_text) < 17_000


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(Status.SUCCEEDED, b"null"),
        Outcome(Status.SUCCEEDED, b'{"a":[1]}'),
        Outcome(Status.FAILED, None, b'{"type":"x"}'),
        Outcome(Status.CANCELLED),
    ],
)
def test_outcomes_travel(outcome: Outcome) -> None:
    data = encode_outcome(outcome)
    assert decode_outcome(data) == outcome
    assert msgspec.json.decode(data)["status"] == outcome.status


@pytest.mark.parametrize("data", [b"", b"{}", b'{"status":1}', b'{"status":99}', b'{"status":"x"}'])
def test_what_is_no_outcome(data: bytes) -> None:
    with pytest.raises(ValueError, match="a child's outcome"):
        decode_outcome(data)
