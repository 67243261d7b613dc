"""AutoAttack (Croce & Hein 2020), L-infinity: the authors' four attacks, one after the other.

The attacks are the authors' own code (pyautoattack, MIT). The loop around them is ours: like
theirs it stops at the first attack that fools an image, but it draws the random numbers of an image
from its key, so that they depend neither on its batch nor on which other images still resist.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from netkin.attacks.base import Attack, Passes, generator, uniform, warn_once
from netkin.attacks.units import fraction, whole_number
from netkin.errors import UserError, check_known

log = logging.getLogger(__name__)
authors_log = log.getChild("authors")
authors_log.setLevel(logging.ERROR)  # they warn of every batch with a gradient of zero

ATTACKS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")

Try = Callable[[Tensor, Tensor, list[str], Tensor], Tensor]
"""(pixels, labels, keys, classes by rank) of n images to a try for each, within the ball."""


class AutoAttack(Attack):
    """Four attacks in turn, each on the images that the ones before have not fooled.

    The standard version: APGD on the cross-entropy; APGD on the targeted DLR loss and FAB, each
    for the `targets` likeliest wrong classes in turn; Square. With fewer than 4 classes there is no
    targeted DLR loss (it divides by differences of the four highest logits): the targeted
    cross-entropy takes its place, which the log says. With K classes there are at most K - 1
    targets.

    An image that nothing fools is returned, by default, as the strongest try: the one of the
    highest cross-entropy. The authors return the clean image, which makes no difference to the
    robust accuracy that they count. It does to transfer: a clean image fools no other model of the
    same view either, so the score of a source that resists would measure its robustness.
    `unfooled="clean"` is the authors' way.

    Args:
        eps: radius of the ball, in pixels of [0, 1]; a number or a string such as "8/255".
        attacks: which, in order: "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square".
        steps: of APGD and FAB, each.
        targets: classes that a targeted attack aims at.
        queries: of Square.
        unfooled: "strongest" or "clean": which image is returned where nothing fools.
        seed: of the random starts and squares.

    Raises UserError for an argument outside its range, and when apgd-dlr meets 2 classes.
    """

    eps: float

    def __init__(
        self,
        eps: float | str = "8/255",
        attacks: Sequence[str] = STANDARD,
        steps: int = 100,
        targets: int = 9,
        queries: int = 5000,
        unfooled: str = "strongest",
        seed: int = 0,
    ):
        self.eps = fraction(eps, "eps")
        self.attacks = _known(attacks)
        self.steps = whole_number(steps, "steps")
        self.targets = whole_number(targets, "targets")
        self.queries = whole_number(queries, "queries")
        if unfooled not in ("strongest", "clean"):
            raise UserError(f"unfooled must be strongest or clean, got {unfooled!r}")
        self.unfooled = unfooled
        self.seed = whole_number(seed, "seed", least=0)

    def perturb(
        self, model: nn.Module, pixels: Tensor, labels: Tensor, keys: Sequence[str]
    ) -> Tensor:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):  # the authors draw on the CPU
            pixels = pixels.contiguous()  # their code takes views that other layouts do not allow
            logits = model(pixels)
            ranks = logits.argsort(dim=1)  # [B, K], the likeliest class last
            resists = logits.argmax(dim=1) == labels
            strongest, loss = pixels.clone(), _loss(logits, labels)
            for attempt in self._tries(model, logits.shape[1], pixels.device):
                left = resists.nonzero().flatten()
                if not len(left):
                    break
                left_keys = [str(keys[i]) for i in left.tolist()]
                tried = attempt(pixels[left], labels[left], left_keys, ranks[left])
                logits = model(tried)
                fools = logits.argmax(dim=1) != labels[left]
                stronger = _loss(logits, labels[left]) > loss[left]
                better = fools | stronger if self.unfooled == "strongest" else fools
                strongest[left[better]] = tried[better]
                loss[left[better]] = _loss(logits, labels[left])[better]
                resists[left[fools]] = False
        return strongest

    def passes(self, model: nn.Module, classes: int) -> Passes:
        """Those of an image that nothing fools; most images are fooled by the first attack.

        That is why a few steps of it tell nothing of its time, and `shortened` returns it whole.
        """
        targets = min(self.targets, classes - 1)
        forward, backward = 1, 0  # the clean image
        for name in self.attacks:
            others = {"square": (self.queries + 1, 0), "fab-t": (2 * self.steps + 2, self.steps)}
            passes = others.get(name, (self.steps + 1, self.steps + 1))
            times = targets if name in ("apgd-t", "fab-t") else 1
            forward += times * (passes[0] + 1)  # each try is evaluated once
            backward += times * passes[1]
        return Passes(forward, backward)

    def _tries(self, model: nn.Module, classes: int, device: torch.device) -> Iterator[Try]:
        """The attacks in turn, a targeted one once for each target."""
        targets = range(1, 1 + min(self.targets, classes - 1))
        for name in self.attacks:
            if name == "apgd-dlr" and classes < 3:
                raise UserError(
                    f"attacks has apgd-dlr, whose loss needs 3 classes; here are {classes}: leave "
                    "it out"
                )
            if name == "square":
                yield partial(self._square, model)
            elif name == "fab-t":
                yield from (partial(self._fab, model, k) for k in targets)
            elif name == "apgd-t":
                yield from (partial(self._apgd_t, model, k) for k in targets)
            else:
                yield partial(self._apgd, model, name)

    def _apgd(
        self, model: nn.Module, name: str, x: Tensor, y: Tensor, keys: list[str], _ranks: Tensor
    ) -> Tensor:
        attack = APGDAttack(
            model,
            n_iter=self.steps,
            eps=self.eps,
            loss=name.removeprefix("apgd-"),
            device=x.device,
            logger=authors_log,
        )
        return self._run_apgd(attack, x, y, keys, name)

    def _apgd_t(
        self, model: nn.Module, target: int, x: Tensor, y: Tensor, keys: list[str], ranks: Tensor
    ) -> Tensor:
        attack = APGDAttack_targeted(
            model, n_iter=self.steps, eps=self.eps, device=x.device, logger=authors_log
        )
        attack.y_target = ranks[:, -1 - target]
        if ranks.shape[1] < 4:
            attack.loss = "ce-targeted"
            warn_once(
                f"the targeted DLR loss needs 4 classes, here are {ranks.shape[1]}: apgd-t takes "
                "the targeted cross-entropy instead"
            )
        return self._run_apgd(attack, x, y, keys, f"apgd-t {target}")

    def _run_apgd(
        self, attack: APGDAttack, x: Tensor, y: Tensor, keys: list[str], name: str
    ) -> Tensor:
        """Where it was fooled, the last point that did; else the point of the highest loss."""
        attack.init_hyperparam(x)
        start = self._start(x, keys, name)
        strongest, right, _, fooling = attack.attack_single_run(x, y, x_init=start)
        return torch.where(right.bool().view(-1, 1, 1, 1), strongest, fooling)

    def _start(self, x: Tensor, keys: list[str], name: str) -> Tensor | None:
        """Where APGD begins, a point on the ball's surface; None leaves it to the authors."""
        noise = uniform(x.shape[1:], 1.0, self.seed, [f"{key}\n{name}" for key in keys]).to(x)
        return x + self.eps * noise / noise.abs().amax(dim=(1, 2, 3), keepdim=True)

    def _fab(
        self, model: nn.Module, target: int, x: Tensor, y: Tensor, _keys: list[str], _ranks: Tensor
    ) -> Tensor:
        """FAB's nearest adversarial image, or the clean one where that is outside the ball."""
        attack = FABAttack_PT(model, n_iter=self.steps, eps=self.eps, device=x.device)
        attack.target_class = target + 1  # they count from the likeliest class, as 1
        nearest = attack.attack_single_run(x, y, is_targeted=True)
        outside = (nearest - x).abs().amax(dim=(1, 2, 3)) > self.eps
        return torch.where(outside.view(-1, 1, 1, 1), x, nearest)

    def _square(
        self, model: nn.Module, x: Tensor, y: Tensor, keys: list[str], _ranks: Tensor
    ) -> Tensor:
        attack = self._square_attack(model, keys)
        attack.init_hyperparam(x)
        return attack.attack_single_run(x, y)[1]

    def _square_attack(self, model: nn.Module, keys: list[str]) -> SquareAttack:
        return Square(model, self.eps, self.queries, self.seed, keys)


class Square(SquareAttack):
    """The authors' Square Attack on random numbers of ours.

    The stripes it begins with are drawn per image; the squares' places and signs are the same for
    all images, as theirs are for all images of a batch.
    """

    def __init__(self, model: nn.Module, eps: float, queries: int, seed: int, keys: Sequence[str]):
        super().__init__(model, n_queries=queries, eps=eps, seed=seed, resc_schedule=False)
        self._stripes = seed, [f"{key}\nsquare" for key in keys]
        self.common = generator(seed, "squares")

    def random_choice(self, shape: Sequence[int]) -> Tensor:
        """Signs: [n, C, 1, W] for the stripes of n images, [C, 1, 1] for a square."""
        if len(shape) == 4:
            seed, keys = self._stripes
            assert shape[0] == len(keys)
            return uniform(shape[1:], 1.0, seed, keys).sign().to(self.device)
        return torch.from_numpy(self.common.choice((-1.0, 1.0), shape)).float().to(self.device)

    def random_int(self, low: int = 0, high: int = 1, shape: Sequence[int] = (1,)) -> Tensor:
        """A place in [low, high), as the authors draw it: the last one never, unless it is low."""
        return torch.from_numpy(self.common.integers(low, max(high, low + 1), shape))


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels, reduction="none")


def _known(attacks: Sequence[str]) -> tuple[str, ...]:
    if isinstance(attacks, str) or not attacks:
        raise UserError(f"attacks must be a list such as [apgd-ce, square], got {attacks!r}")
    for name in attacks:
        check_known(name, ATTACKS, f"attacks must be AutoAttack's, got {name!r}")
    return tuple(attacks)
