"""`python -m aragog_env.cli`: the same as `aragog`."""

from __future__ import annotations

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
