"""Evaluation: what a bundle is worth on clips and calls that its models never heard, measured through the job itself.

``held_out`` says what a bundle never heard, ``measure`` scores it, through ``degradations`` and in composed ``calls``
too; ``scores`` are the figures, ``report``, ``pictures`` and ``card`` show them.
"""

from batchser.training.evaluate.held_out import (
    bundle_splits,
    protocol_of,
    read_clips,
    require_split_models,
    split_model,
    unheard_by,
)
from batchser.training.evaluate.measure import (
    EvaluateOptions,
    choose_degradations,
    evaluate_bundle,
    evaluate_strangers,
    score_clips,
    score_split,
)

__all__ = [
    "EvaluateOptions",
    "bundle_splits",
    "choose_degradations",
    "evaluate_bundle",
    "evaluate_strangers",
    "protocol_of",
    "read_clips",
    "require_split_models",
    "score_clips",
    "score_split",
    "split_model",
    "unheard_by",
]
