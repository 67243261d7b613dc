"""The landmarks of a study: their choice, and the passes that measure all models with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import ListConfig

from netkin.analysis import matrix
from netkin.analysis.landmarks import FEWEST, check_number
from netkin.analysis.matrix import Matrix, off_diagonal, position_of
from netkin.errors import UserError
from netkin.model import Model
from netkin.run import Incomplete, Run

AUTO = 20
"""Landmarks of `landmarks=auto`, or half of the models where that is less."""


def choose(value: Any, names: Sequence[str], seed: int, all_allowed: bool = False) -> list[int]:
    """The positions of the landmarks among the models, in the models' order.

    Args:
        value: of the key `landmarks`: a number, which are drawn at random, names, or auto.
        names: of the models.
        seed: of the draw.
        all_allowed: whether all models, or so many that no pair is left, may be landmarks.

    Raises UserError for another value, an unknown name, and too few or too many landmarks.
    """
    if value == "auto":
        value = min(AUTO, max(FEWEST, len(names) // 2))
    if isinstance(value, int) and not isinstance(value, bool):
        _check(value, len(names), all_allowed)
        drawn = np.random.default_rng(seed).choice(len(names), value, replace=False)
        return sorted(int(i) for i in drawn)
    if not isinstance(value, list | ListConfig) or not value:
        raise UserError(
            f"landmarks must be a number, a list of models or auto, got {value!r}; for example "
            "landmarks=20 or landmarks=[resnet50,vit_base_patch16_224]"
        )
    chosen = sorted({position_of(str(name), names, "landmarks: the run") for name in value})
    if len(chosen) < len(value):
        raise UserError(f"landmarks names a model twice: {', '.join(map(str, value))}")
    _check(len(chosen), len(names), all_allowed)
    return chosen


def _check(landmarks: int, models: int, all_allowed: bool) -> None:
    if not all_allowed or landmarks > models:
        check_number(landmarks, models)
    elif landmarks < 1:
        raise UserError(f"landmarks must be 1 model or more, got {landmarks}")


def pass_landmarks(r: Run, landmarks: Sequence[str], one_sided: bool) -> list[Model]:
    """Attack the landmarks, and evaluate all models on their images, where the store lacks that.

    Unless `one_sided`, the others are attacked, too, and the landmarks evaluated on their images.
    Returns the models that did not fail. Raises Incomplete where a landmark failed.
    """
    marks = [model for model in r.models if model.name in landmarks]
    with r.working():
        evaluated = r.clean()
        crafted = r.craft([m for m in evaluated if not one_sided or m in marks])
        if all(mark in crafted for mark in marks):
            r.transfer(r.remaining(evaluated), marks)
            rest = [m for m in r.remaining(crafted) if m not in marks]
            if not one_sided and rest:
                r.transfer(marks, rest)
    finished = r.remaining()
    if lost := [f for f in r.failures if f.model in marks]:
        raise Incomplete(lost, None, len(r.models))
    return finished


def predicted(file: Path, scores: Matrix) -> tuple[str, ...]:
    """A sentence on how many scores of a file are predicted: of the similarity.csv that
    `experiment=landmarks` writes, by the measured.csv beside it."""
    beside = file.with_name("measured.csv")
    if file.name != "similarity.csv" or not beside.is_file():
        return ()
    try:
        measured = matrix.read(beside).of(scores.names).scores
    except UserError:  # another command's file, or all scores are measured
        return ()
    pairs = off_diagonal(measured)
    return (
        f"{int((pairs == 0).sum()):,} of {len(pairs):,} scores are predicted, not measured "
        f"({beside.name}), by experiment=landmarks.",
    )
