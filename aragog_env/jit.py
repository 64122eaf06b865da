"""numba's `njit` with an on-disk cache that notices a change in any compiled module.

numba stores compiled code by the source file of the compiled function alone; after an edit of a function that it *calls*, it
would go on using the old one. So the cache folder carries a hash of all sources that take part.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numba
from numba import njit, prange
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

__all__ = ["borrowed", "njit", "prange"]

_PACKAGE = Path(__file__).resolve().parent


def _sources_hash() -> str:
    """Return a hash of every module of this package that compiles something."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        text = path.read_bytes()
        if b"njit" in text:
            digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + text)
    return digest.hexdigest()[:16]


def _cache_folder() -> str:
    """Return a writable folder for this state of the sources."""
    name = f"aragog-numba-{_sources_hash()}"
    for parent in (_PACKAGE / "__pycache__", Path.home() / ".cache"):
        try:
            (parent / name).mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(parent / name, os.W_OK):
            return str(parent / name)
    return os.path.join(tempfile.gettempdir(), name)


if not os.environ.get("NUMBA_CACHE_DIR"):
    numba.config.CACHE_DIR = _cache_folder()


@intrinsic  # type: ignore[untyped-decorator]
def borrowed(typing_context, arrays):  # type: ignore[no-untyped-def]
    """Return a named tuple of arrays without reference counts, for use inside the compiled function that received it.

    Counting references costs an atomic operation per array whenever the tuple is passed on, which for tuples of a dozen
    arrays takes longer than most of our functions. The caller of the compiled function keeps the arrays alive.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kind = signature.args[0]
        result = context.get_constant_undef(kind)
        for i, array_type in enumerate(kind.types):
            array = make_array(array_type)(context, builder, value=builder.extract_value(args[0], i))
            array.meminfo = cgutils.get_null_value(array.meminfo.type)
            array.parent = cgutils.get_null_value(array.parent.type)
            result = builder.insert_value(result, array._getvalue(), i)
        return result

    return arrays(arrays), codegen
