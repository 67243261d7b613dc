"""How strong attacks are on a model itself: white-box success, with nothing stored."""

from dataclasses import dataclass, replace

import torch

from netkin.attacks import Attack
from netkin.errors import UserError
from netkin.jobs.pool import Advance, Result
from netkin.model import Model
from netkin.results import Results
from netkin.runner import Runner


@dataclass(frozen=True)
class Trial:
    """A model, attacks with an eps, and the positions in the subset of the images to attack."""

    model: Model
    attacks: tuple[Attack, ...]
    positions: tuple[int, ...]

    @property
    def name(self) -> str:
        """The model's, for the display."""
        return self.model.name


@dataclass(frozen=True, kw_only=True)
class Strengths(Result):
    """Of `images` attacked images, how many fool the model: one number an attack."""

    fooled: tuple[int, ...]


def strengths(results: Results, runner: Runner, trial: Trial, advance: Advance) -> Strengths:
    """Attack those of a trial's images that the model, whose clean pass is done, has right.

    Images are 8-bit ones, as crafting stores them, unless the evaluation's `dtype` is float32.
    Raises UserError where the model has none of the images right.
    """
    model, right, evaluation = trial.model, results.correct(trial.model), results.evaluation
    positions = [i for i in trial.positions if right[i]]
    if not positions:
        raise UserError(
            f"{model.name} classifies none of {len(trial.positions)} images correctly: there is "
            "nothing to attack"
        )
    runner = replace(runner, execution=replace(runner.execution, compile=False))
    clean = results.images_at(model.view, positions).to(runner.device)
    labels = evaluation.labels[positions].to(runner.device)
    keys = evaluation.keys(model.name, positions)
    classifier = model.build().eval().to(runner.device)
    predictor = runner.predictor(classifier)
    crafter = runner.crafter(classifier, evaluation)
    crafter.prepare(clean[:2].float() / 255)
    counts = []
    for attack in trial.attacks:
        crafter.evaluation = replace(evaluation, attack=attack)
        images = torch.cat(list(crafter.craft(clean, labels, keys)))
        with torch.no_grad():
            logits = torch.cat(list(predictor.logits(images, images.shape[-1])))
        counts.append(int((logits.argmax(dim=1) != labels).sum()))
        advance(1)
    return Strengths(images=len(positions), fooled=tuple(counts))


def spread(images: int, most: int) -> tuple[int, ...]:
    """At most `most` positions in a subset of some images, evenly spaced: subsets of class folders
    are in the order of the classes."""
    n = min(images, most)
    return tuple(i * images // n for i in range(n))
