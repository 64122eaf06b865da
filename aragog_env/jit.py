"""numba's `njit` with an on-disk cache that notices a change in any compiled module.

numba stores compiled code by the source file of the compiled function alone; after an edit of a function that it *calls*, it
would go on using the old one. So the cache folder carries a hash of all sources that take part.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit, prange

__all__ = ["inlined", "kernel", "njit", "prange"]

_PACKAGE = Path(__file__).resolve().parent


def sources_hash() -> str:
    """Return a hash of every module of this package that compiles something, or lends constants to one that does."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        text = path.read_bytes()
        if b"jit import" in text or path.parent.name == "engine":
            digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + text)
    return digest.hexdigest()[:16]


def _cache_folder() -> str:
    """Return a writable folder for this state of the sources."""
    name = f"aragog-numba-{sources_hash()}"
    for parent in (_PACKAGE / "__pycache__", Path.home() / ".cache"):
        try:
            (parent / name).mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(parent / name, os.W_OK):
            return str(parent / name)
    return os.path.join(tempfile.gettempdir(), name)


if not os.environ.get("NUMBA_CACHE_DIR"):
    numba.config.CACHE_DIR = _cache_folder()  # type: ignore[attr-defined]

_OPTIONS: dict[str, Any] = {"cache": True, "_nrt": False}
# Arguments of kernels are int64 wherever a caller has a choice: every other combination of types compiles the callee again.
#
# Kernels allocate nothing, so they need no reference counts. Counting them costs a call per array whenever a named tuple of
# a dozen arrays is passed on, which took more time than most of our functions.


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that works on arrays it is given and allocates none."""
    return njit(**_OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """`kernel` for small functions on hot paths: inlined into every caller."""
    return njit(forceinline=True, **_OPTIONS)(function)
