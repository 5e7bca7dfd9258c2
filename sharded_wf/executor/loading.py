"""Finding the app that a command line names: ``shop.flows:app``."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path

from sharded_wf.errors import AppNotFound
from sharded_wf.workflow.app import App


def check_app_path(path: str) -> tuple[str, str]:
    """The module's name and the attribute's of ``module:attribute``. Raises ``AppNotFound`` if it is not written so."""
    module_name, _, attribute = path.partition(":")
    if not module_name or module_name.endswith(".py") or "/" in module_name:
        raise AppNotFound(f"{path!r} is no app: write module:attribute, for example shop.flows:app")
    return module_name, attribute or "app"


def load_app(path: str) -> App:
    """Import the app named by ``module:attribute`` (``:app`` may be left out), from the working directory or wherever
    Python finds modules. Raises ``AppNotFound``; of an error inside the module it has the traceback, from the module
    on."""
    module_name, attribute = check_app_path(path)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise AppNotFound(
                f"there is no module {error.name!r} (looked for {path!r} in {here} and on Python's path)"
            ) from None
        raise _broken(path, error) from None
    except Exception as error:  # noqa: BLE001 - whatever the user's own module raises
        raise _broken(path, error) from None
    app = getattr(module, attribute, None)
    if not isinstance(app, App):
        have = sorted(name for name, value in vars(module).items() if isinstance(value, App))
        hint = f"; it has {', '.join(f'{module_name}:{name}' for name in have)}" if have else "; it has no App"
        raise AppNotFound(f"{module_name!r} has no app named {attribute!r}{hint}")
    return app


def _broken(path: str, error: Exception) -> AppNotFound:
    """What to say of a module that can't be imported: where in the user's own code, and not how we got there."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in _IMPORTING:
        frames = frames.tb_next
    text = "".join(traceback.format_exception(error.with_traceback(frames)))
    return AppNotFound(f"{path!r} can't be imported:\n{text.rstrip()}")


_IMPORTING = (__file__, importlib.__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
