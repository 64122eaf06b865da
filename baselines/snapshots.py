"""Any picklable object as plain tensors, small: what lies in never used memory is left out.

An environment allocates for the worst case (KV blocks, hashes of prompts) and touches a small part of it; 64 of them pickle to
hundreds of megabytes of zeros.
"""

from __future__ import annotations

import pickle
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK: Final = 4096


def freeze(thing: object) -> dict[str, Any]:
    """Return `thing` as tensors and numbers that `torch.save` writes and a `weights_only` load reads."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(thing, protocol=5, buffer_callback=buffers.append)
    sizes, used, blocks = [], [], []
    for buffer in buffers:
        raw = np.frombuffer(buffer.raw(), np.uint8)
        sizes.append(len(raw))
        padded = raw if len(raw) % _BLOCK == 0 else np.concatenate((raw, np.zeros(-len(raw) % _BLOCK, np.uint8)))
        rows = padded.reshape(-1, _BLOCK)
        touched = rows.view(np.uint64).any(axis=1)
        used.append(np.flatnonzero(touched))
        blocks.append(rows[touched])
    return {
        "head": _tensor(np.frombuffer(head, np.uint8)),
        "sizes": sizes,
        "used": [_tensor(index) for index in used],
        "blocks": [_tensor(block) for block in blocks],
    }


def thaw(frozen: dict[str, Any]) -> Any:
    """Return what `freeze` was given. It is unpickled: only for files that you have written yourself."""
    buffers = []
    for size, used, blocks in zip(frozen["sizes"], frozen["used"], frozen["blocks"], strict=True):
        rows = np.zeros((-(-size // _BLOCK), _BLOCK), np.uint8)
        rows[used.numpy()] = blocks.numpy()
        buffers.append(rows.reshape(-1)[:size])
    return pickle.loads(frozen["head"].numpy().tobytes(), buffers=buffers)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(array.copy())
