"""Ensembles of a study's members, from stored logits."""

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from experiments.common.study import Study
from netkin.analysis.ensemble import ensembles_correct
from netkin.jobs.progress import Bars
from netkin.transfer.setting import Setting
from netkin.transfer.stored import logits_by_block
from netkin.zoo.member import Member


def ensembles_wrong(
    s: Study, setting: Setting, members: list[Member], groups: Sequence[Sequence[int]]
) -> NDArray[np.bool_]:
    """Which images each of G ensembles misclassifies, [G, I], with a progress bar.

    Args:
        s: the study, whose console shows the progress.
        setting, members: of `experiments.common.study.with_logits`.
        groups: G ensembles, each the positions of its members.
    """
    with Bars(s.console) as bars, logits_by_block(setting, members) as read:
        bars.start("ensemble", ["images"], len(setting.subset))
        correct = ensembles_correct(
            read,
            setting.labels.numpy(),
            groups,
            len(os.sched_getaffinity(0)),
            lambda images: bars.advance("ensemble", images),
        )
        bars.end("ensemble")
    return ~correct
