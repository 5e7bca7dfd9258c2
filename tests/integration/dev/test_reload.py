"""``sharded-wf dev``: servers, an executor, and a new one whenever the source changes."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import pytest

from sharded_wf.client.blocking import BlockingClient
from sharded_wf.config import ClusterConfig
from sharded_wf.dev.reload import Sources
from sharded_wf.workflow.by_name import by_name
from tests.support.processes import WorkerProcess

FLOWS = """
from sharded_wf import App

app = App("reloaded")

@app.workflow
async def hello() -> str:
    return {greeting!r}
"""
DEV = "import os, sys; os.chdir(sys.argv.pop(1)); from sharded_wf.cli import main; main()"


@pytest.mark.sampled
def test_a_change_is_running_soon(tmp_path: Path) -> None:
    source = tmp_path / "flows.py"
    source.write_text(FLOWS.format(greeting="first"))
    environment = {"SHARDED_WF_CONFIG": "", "PYTHONDONTWRITEBYTECODE": "1"}
    with WorkerProcess(DEV, str(tmp_path), "dev", "flows:app", "--shards", "1", environment=environment) as dev:
        told = dev.wait_line("--cluster")
        config = ClusterConfig.from_file(tmp_path / told.split("--cluster ")[1].strip())
        dev.wait_line("started")
        hello = by_name("reloaded/hello", str)
        with BlockingClient.connect(config) as client:
            assert client.start(hello.bind()).result(30) == "first"
            source.write_text(FLOWS.format(greeting="second, and longer"))
            dev.wait_line("flows.py changed")
            dev.wait_line("started")
            assert client.start(hello.bind()).result(30) == "second, and longer"
            source.write_text("this is no Python")
            dev.wait_line("starts again when a file changes")
            source.write_text(FLOWS.format(greeting="third"))
            dev.wait_line("started")
            assert client.start(hello.bind()).result(30) == "third"
        dev.signal(signal.SIGINT)
        dev.wait_line("dev  stopped")
        assert dev.wait() == 0


def test_only_the_source_that_matters_is_watched(tmp_path: Path) -> None:
    for name in ("venv", ".hidden", "pkg", "__pycache__"):
        (tmp_path / name).mkdir()
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    sources = Sources(tmp_path)
    for name in ("venv/a.py", ".hidden/a.py", "__pycache__/a.py", "pkg/notes.txt"):
        (tmp_path / name).touch()
    assert sources.changed() == []
    inner = tmp_path / "pkg" / "a.py"
    inner.touch()
    assert sources.changed() == [str(Path("pkg/a.py"))]
    assert sources.changed() == []
    os.utime(inner, ns=(1, 1))
    assert sources.changed() == [str(Path("pkg/a.py"))]
    inner.unlink()
    assert sources.changed() == [str(Path("pkg/a.py"))]


def test_a_name_that_is_no_app_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with WorkerProcess(DEV, str(tmp_path), "dev", "flows.py") as dev:
        dev.wait_line("write module:attribute")
        assert dev.wait() == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_it(tmp_path: Path, end: signal.Signals) -> None:
    (tmp_path / "flows.py").write_text(FLOWS.format(greeting="hi"))
    with WorkerProcess(DEV, str(tmp_path), "dev", "flows:app", "--shards", "1") as dev:
        pid = int(dev.wait_line("started").split()[2])
        executor = os.pidfd_open(pid)
        dev.signal(end)
        dev.wait()
        assert select.select([executor], [], [], 30)[0], "the executor goes on"
        os.close(executor)
