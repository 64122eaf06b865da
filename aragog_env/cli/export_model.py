"""Write a trained network for use without this project: .pt2 (torch.export) or .onnx (docs/learning.md)."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="PATH", help="folder of a training run, or its model.safetensors")
    parser.add_argument(
        "--out",
        "-o",
        required=True,
        metavar="FILE",
        help="scheduler.pt2, or scheduler.onnx (needs onnx and onnxscript)",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..errors import SpecError
    from ..registry import load_entry_point

    # Networks live above this package: reached by name only.
    load = load_entry_point("baselines.model_file:ModelFile", "export-model").load
    try:
        network_class = load_entry_point("baselines.network:Network", "export-model")
        export = load_entry_point("baselines.network:export", "export-model")
    except SpecError as error:
        raise SpecError("exporting a network needs torch: pip install 'aragog-gym[train]'") from error
    model, out = load(options.model), Path(options.out)
    network = network_class(model.width)
    network.load(model)
    export(network, out)
    print(out)
    return 0
