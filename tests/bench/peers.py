"""What others make of the same windows: openSMILE's eGeMAPS functionals, and a network of wav2vec2-base's size.

    python peers.py opensmile|wav2vec2 WINDOWS.npy      → {"version": …, "windows": …, "seconds": …}, one thread

A program of its own that imports nothing of ours: openSMILE aborts in a process that has loaded TensorFlow, and either
may live in another environment (`bench.py --peers PYTHON`). Weights of the network are random: they cost the same.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version

import numpy as np

RATE_HZ = 8000
WARM_UP = 2
BATCH = 4


def opensmile_egemaps(windows: np.ndarray) -> tuple[str, float]:
    """The 88 functionals of each window, a call a window: there is no other."""
    import opensmile

    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    for window in windows[:WARM_UP]:
        smile.process_signal(window, RATE_HZ)
    started = time.perf_counter()
    for window in windows:
        smile.process_signal(window, RATE_HZ)
    return version("opensmile"), time.perf_counter() - started


def wav2vec2_sized(windows: np.ndarray) -> tuple[str, float]:
    """Baevski et al. 2020, base: seven convolutions of 512, twelve transformer layers of 768, at 16 kHz, in batches."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
    convolutions: list[nn.Module] = []
    for k, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
        convolutions += [nn.Conv1d(512 if k else 1, 512, kernel, stride, bias=False), nn.GELU()]
    listen = nn.Sequential(*convolutions)
    project = nn.Linear(512, 768)
    layer = nn.TransformerEncoderLayer(768, 12, 3072, activation="gelu", batch_first=True)
    think = nn.TransformerEncoder(layer, 12)
    for part in (listen, project, think):
        part.eval()
    sound = torch.from_numpy(np.repeat(windows, 2, axis=1))[:, None]  # to 16 kHz; how well does not matter here
    with torch.inference_mode():
        think(project(listen(sound[:BATCH]).transpose(1, 2)))
        started = time.perf_counter()
        for start in range(0, len(sound), BATCH):
            think(project(listen(sound[start : start + BATCH]).transpose(1, 2))).mean(dim=1)
    return version("torch"), time.perf_counter() - started


PEERS = {"opensmile": opensmile_egemaps, "wav2vec2": wav2vec2_sized}

if __name__ == "__main__":
    name, path = sys.argv[1:]
    found = np.load(path)
    try:
        told, seconds = PEERS[name](found)
    except ImportError as error:
        sys.exit(f"not installed: {error}")
    print(json.dumps({"version": told, "windows": len(found), "seconds": seconds}))
