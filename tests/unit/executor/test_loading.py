"""An app that can't be loaded: what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharded_wf import AppNotFound
from sharded_wf.executor.loading import load_app


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("loading_syntax", "def broken(:\n", "SyntaxError"),
        ("loading_import", "import a_module_that_is_not_there\n", "No module named 'a_module_that_is_not_there'"),
        (
            "loading_twice",
            "from sharded_wf import App\napp = App('a')\n\n@app.lifespan\ndef no(app): ...\n",
            "DefinitionError: @app.lifespan",
        ),
    ],
)
def test_an_error_in_the_module_is_shown_from_the_users_line_on(
    name: str, text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AppNotFound) as caught:
        load_app(f"{name}:app")
    message = str(caught.value)
    assert message.startswith(f"'{name}:app' can't be imported:\n")
    assert said in message
    assert f"{name}.py" in message
    assert "importlib" not in message
    assert "loading.py" not in message
