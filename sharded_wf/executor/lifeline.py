"""How a worker's child learns that its supervisor is gone, by whatever means: the end of a pipe that only the
supervisor holds open becomes readable. The environment tells the child which file descriptor that is."""

from __future__ import annotations

import os

_VARIABLE = "SHARDED_WF_SUPERVISOR_FD"


def environment_with(descriptor: int) -> dict[str, str]:
    """The environment for a child that is given this end of the pipe."""
    return {**os.environ, _VARIABLE: str(descriptor)}


def environment_without() -> dict[str, str]:
    """The environment for a process that is not given it."""
    return {name: value for name, value in os.environ.items() if name != _VARIABLE}


def descriptor() -> int | None:
    """This process's end of the pipe, if it has a supervisor."""
    given = os.environ.get(_VARIABLE)
    return None if given is None else int(given)
