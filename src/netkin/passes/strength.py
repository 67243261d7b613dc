"""How strong attacks are on a member itself: white-box success, with nothing stored."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from netkin.attacks import Attack
from netkin.attacks.frozen import frozen
from netkin.attacks.grid import to_grid
from netkin.errors import UserError
from netkin.jobs.pool import Advance
from netkin.jobs.results import Result
from netkin.passes.batches import Batches
from netkin.passes.setting import Setting
from netkin.passes.stored import correct
from netkin.zoo.execution import exact_float32, prepare
from netkin.zoo.member import Member


@dataclass(frozen=True)
class Trial:
    """A member, attacks with an eps, and the positions in the subset of the images to attack."""

    member: Member
    attacks: tuple[Attack, ...]
    positions: tuple[int, ...]

    @property
    def name(self) -> str:
        """The member's, for the display."""
        return self.member.name


@dataclass(frozen=True, kw_only=True)
class Strengths(Result):
    """Of `images` attacked images, how many fool the member: one number an attack."""

    fooled: tuple[int, ...]


def strengths(setting: Setting, trial: Trial, advance: Advance) -> Strengths:
    """Attack those of a trial's images that the member, whose clean pass is done, has right.

    Images are 8-bit ones, as crafting stores them, unless the setting's `dtype` is float32. Raises
    UserError where the member has none of the images right.
    """
    member, right = trial.member, correct(setting, trial.member)
    positions = [i for i in trial.positions if right[i]]
    if not positions:
        raise UserError(
            f"{member.name} classifies none of {len(trial.positions)} images correctly: there is "
            "nothing to attack"
        )
    device, execution = setting.device, replace(setting.choice.execution, compile=False)
    clean = setting.images_at(setting.view(member), positions).to(device)
    labels, keys = setting.labels[positions].to(device), setting.keys(member, positions)
    classifier = setting.build(member).eval().to(device)
    evaluator = setting.evaluator(classifier)
    model = prepare(classifier, execution, clean[:2].float() / 255)
    batches = Batches(setting.batch_size, member.name)

    def fooled(attack: Attack, batch: slice) -> int:
        pixels = clean[batch].float() / 255
        with frozen(model) as source, exact_float32(execution.precision):
            adversarial = attack.perturb(source, pixels, labels[batch], keys[batch]).detach()
        with torch.no_grad():
            predictions = evaluator(_stored(setting, adversarial, clean[batch], attack)).argmax(1)
        return int((predictions != labels[batch]).sum())

    counts = []
    for attack in trial.attacks:
        parts = batches.run(len(positions), lambda batch, attack=attack: fooled(attack, batch))
        counts.append(sum(parts))
        advance(1)
    return Strengths(images=len(positions), fooled=tuple(counts))


def spread(images: int, most: int) -> tuple[int, ...]:
    """At most `most` positions in a subset of some images, evenly spaced: subsets of class folders
    are in the order of the classes."""
    n = min(images, most)
    return tuple(i * images // n for i in range(n))


def _stored(setting: Setting, adversarial: Tensor, clean: Tensor, attack: Attack) -> Tensor:
    """Adversarial pixels as the store would hold them, in [0, 1]."""
    if setting.dtype == "uint8":
        return to_grid(adversarial, clean, attack.eps).float() / 255
    return adversarial
