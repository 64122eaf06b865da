"""Functions that a workflow file names: ``module:function``, or ``file.py:function`` in the workflow's own folder."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import SpecError, did_you_mean


def resolve(name: str, folder: Path, *, where: str) -> Callable[..., Any]:
    """Return the function called `name`.

    Args:
        name: ``module:function`` or ``file.py:function``.
        folder: where files are looked for.
        where: location of the name, for errors.

    Raises:
        SpecError: no such module, file or function, or the module fails to load.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute.isidentifier():
        message = f"'{name}' names no function; write module:function, or file.py:function for a file beside this one"
        raise SpecError(message, where=where)
    try:
        module = _from_file(folder / place, where) if place.endswith(".py") else importlib.import_module(place)
    except SpecError:
        raise
    except ModuleNotFoundError as error:
        raise SpecError(f"'{name}' cannot be loaded: there is no module '{error.name}'", where=where) from error
    except Exception as error:
        message = f"'{name}' cannot be loaded ({type(error).__name__}: {error})"
        raise SpecError(message, where=where) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        message = f"'{place}' has no function '{attribute}'.{did_you_mean(attribute, known)}"
        raise SpecError(message, where=where)
    return function  # type: ignore[no-any-return]


def _from_file(path: Path, where: str) -> ModuleType:
    """Load a file as a module of its own, once: names of workflows' files may repeat."""
    path = path.resolve()
    name = f"aragog_workflow_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise SpecError(f"there is no file '{path}'", where=where)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before running it: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
