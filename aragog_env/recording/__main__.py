"""Export a recording as JSON lines: ``python -m aragog_env.recording RUN.db FOLDER``, one file per table."""

from __future__ import annotations

import argparse
import sys

from ..errors import AragogError
from .reader import Recording


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m aragog_env.recording", description=__doc__)
    parser.add_argument("recording", help="the file of a live run")
    parser.add_argument("folder", help="where the files go")
    options = parser.parse_args()
    try:
        with Recording(options.recording) as recording:
            for path in recording.export_jsonl(options.folder):
                print(path)
    except AragogError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
