"""Write the recording of a live run as JSON lines, one file per table (docs/recordings.md)."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("recording", metavar="RECORDING", help="file of a live run (.db)")
    parser.add_argument("folder", metavar="FOLDER", help="where the files go")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..recording import Recording

    with Recording(options.recording) as recording:
        for path in recording.export_jsonl(options.folder):
            print(path)
    return 0
