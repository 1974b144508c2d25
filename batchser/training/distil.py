"""Distilling: a network learns from what others, fitted before it on the same clips, say of each window.

Hinton et al. 2015 (arXiv 1503.02531); with one teacher of the same build, born-again networks (Furlanello et al. 2018).
The teachers of a split have heard what its network may hear and nothing else, so its test clips stay unheard.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchser import networks
from batchser.bundle import NetworkSpec
from batchser.records import FloatArray, IntArray
from batchser.scoring import inference, softmax
from batchser.training.fit import Fitted

_CLIPS = 32  # whose windows are judged at once


@dataclass(frozen=True, slots=True)
class Teaching:
    """Fitted networks and their builds, the mean of whose probabilities is ``share`` of every training target."""

    teachers: tuple[tuple[NetworkSpec, Fitted], ...]
    share: float

    def key(self) -> str:
        """Stand for the teachers and their share."""
        digest = hashlib.sha256(str(self.share).encode())
        for build, teacher in self.teachers:
            digest.update(repr(build).encode())
            for array in (*teacher.weights, teacher.mean, teacher.std, np.float64(teacher.temperature)):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


def taught_targets(
    inputs: npt.NDArray[np.float16], targets: FloatArray, rows: IntArray, teaching: Teaching
) -> FloatArray:
    """Blend the targets of the examples ``rows`` with what the teachers say of each of their windows.

    Parameters
    ----------
    inputs : float16 (n, copies, T, F), the training windows
    targets : float32 (n, L), probabilities of the labels
    rows : int (m,), the examples that are trained on; the others' targets stay as they are
    teaching : the teachers

    Returns
    -------
    FloatArray : float32 (n, copies, L)
    """
    _, copies, num_frames, num_features = inputs.shape
    blended = np.repeat(targets[:, None], copies, axis=1).astype(np.float32)
    blended[rows] *= 1 - teaching.share
    for build, teacher in teaching.teachers:
        network = networks.build(build.name, num_frames, num_features, targets.shape[1], build.options)
        network.set_weights(teacher.weights)
        judge = inference(network, num_frames, num_features)
        for k in range(0, len(rows), _CLIPS):
            part = rows[k : k + _CLIPS]
            windows = inputs[part].reshape(-1, num_frames, num_features).astype(np.float32)
            said = softmax(np.asarray(judge((windows - teacher.mean) / teacher.std)) / np.float32(teacher.temperature))
            blended[part] += teaching.share / len(teaching.teachers) * said.reshape(len(part), copies, -1)
    return blended
