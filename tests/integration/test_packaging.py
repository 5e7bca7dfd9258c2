"""What a user gets who installs the package: the command, the statements, and no more than was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]

SHOW_SQL = """
from sharded_wf.postgres.queries import sql_root
def show(directory, prefix):
    for entry in directory.iterdir():
        show(entry, prefix + entry.name + "/") if entry.is_dir() else print(prefix + entry.name)
print(sql_root())
show(sql_root(), "")
"""

SHOW_MISSING_EXTRA = """
from sharded_wf.dev import EmbeddedServer
try:
    EmbeddedServer.create()
except Exception as error:
    print(type(error).__name__, error)
"""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    # Away from the checkout, and without what leads back to it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([*map(str, command)], cwd="/", env=environment, capture_output=True, text=True)


def pip(python: str | Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run(python, "-m", "pip", "--disable-pip-version-check", *arguments)


def sql_files() -> list[str]:
    return sorted(path.relative_to(PROJECT / "sql").as_posix() for path in (PROJECT / "sql").rglob("*.*"))


def shown_sql(python: str | Path) -> tuple[Path, list[str]]:
    shown = run(python, "-c", SHOW_SQL)
    assert shown.returncode == 0, shown.stderr
    root, *files = shown.stdout.splitlines()
    return Path(root), sorted(files)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    # Asked for alone, so that a failure of the build itself is never taken for a missing network.
    probe = pip(sys.executable, "download", "--quiet", "--no-deps", "--dest", directory / "probe", "hatchling")
    if probe.returncode:
        pytest.skip("OFFLINE: the wheel was NOT built and NOT tried in an empty environment")
    built = pip(sys.executable, "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, PROJECT)
    assert built.returncode == 0, built.stderr
    (made,) = directory.glob("*.whl")
    return made


def test_the_editable_install_reads_the_checkout() -> None:
    assert shown_sql(sys.executable) == (PROJECT / "sql", sql_files())
    assert "queries/" in "".join(sql_files())


def test_the_wheel_holds_the_package_and_its_sql_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert sorted(name.removeprefix("sharded_wf/sql/") for name in names if "/sql/" in name) == sql_files()
    assert "sharded_wf/py.typed" in names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"sharded_wf"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.sampled
def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    installed = pip(python, "install", "--quiet", wheel)
    assert installed.returncode == 0, installed.stderr

    helped = run(tmp_path / "venv" / "bin" / "sharded-wf", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "Usage" in helped.stdout

    root, files = shown_sql(python)
    assert (tmp_path / "venv") in root.parents
    assert files == sql_files()

    missing = run(python, "-c", SHOW_MISSING_EXTRA)
    assert "EmbeddedPostgresMissing" in missing.stdout, missing.stderr
    assert "pip install 'sharded-wf[embedded]'" in missing.stdout


def test_a_python_that_was_named_is_not_replaced_in_silence() -> None:
    script = [str(PROJECT / ".ci" / "python")]
    named = subprocess.run(script, env={**os.environ, "PYTHON": "/nowhere"}, capture_output=True, text=True)
    assert named.stderr.startswith("PYTHON=/nowhere is no Python 3.11 or newer with venv; taking ")
    fine = subprocess.run(script, env={**os.environ, "PYTHON": named.stdout.strip()}, capture_output=True, text=True)
    assert (fine.stdout, fine.stderr) == (named.stdout, "")
