"""Other implementations of the attacks on the same images, which netkin's results must equal.

foolbox for PGD and FGSM; the published algorithm, and torchattacks where it is installed, for MIM;
the authors' package, called directly, for AutoAttack.
"""

import importlib
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from netkin.attacks import PGD, AutoAttack
from netkin.attacks.autoattack import SquareAttack
from netkin.attacks.grid import to_grid
from netkin.errors import UserError

Attacks = Callable[..., Any]
"""(name, **changes) to the attack of conf/attack/<name>.yaml with these changes."""
Images = tuple[nn.Module, Tensor, Tensor, list[str]]
"""A frozen model, and what it classifies correctly: uint8 pixels [n, 3, H, W], labels, keys."""


def installed(package: str) -> Any | None:
    """An installed package, imported; None where there is none (a folder of its name is none)."""
    try:
        version(package)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # foolbox uses SciPy's old names
            return importlib.import_module(package)
    except (ImportError, PackageNotFoundError):
        return None


def require_foolbox() -> None:
    """Raises UserError where foolbox is not installed."""
    if installed("foolbox") is None:
        raise UserError(
            "experiment=parity compares with foolbox, which is not installed: "
            "pip install -e '.[test]'"
        )


def _row(
    attack: str, reference: str, eps: float, clean: Tensor, ours: Tensor, theirs: Tensor
) -> dict[str, Any]:
    """How two results differ, in float and as stored on the 8-bit grid."""
    bytes_ours, bytes_theirs = to_grid(ours, clean, eps), to_grid(theirs, clean, eps)
    package = reference.split()[0]
    return {
        "attack": attack,
        "reference": reference,
        "version": version(package) if package in PACKAGES else "",
        "eps": eps,
        "max_pixel_difference": float((ours - theirs).abs().max()),
        "images_of_equal_bytes": int((bytes_ours == bytes_theirs).flatten(1).all(dim=1).sum()),
    }


def compare_pgd(attacks: Attacks, images: Images, eps: float) -> list[dict[str, Any]]:
    """Against foolbox, from the image itself: the random starts of the two differ.

    Args:
        attacks: builds netkin's attack.
        images: a model and what it classifies correctly.
        eps: not used here; see `compare_autoattack`.

    Returns:
        A row for each comparison; see `_row`.
    """
    attack: PGD = attacks("pgd", random_start=False)
    model, clean, labels, keys = images
    pixels = clean.float() / 255
    theirs = foolbox_run(
        "LinfPGD", model, pixels, labels, attack, abs_stepsize=attack.step_size, steps=attack.steps
    )
    ours = attack.perturb(model, pixels, labels, keys)
    return [_row("pgd, no random start", "foolbox", attack.eps, clean, ours, theirs)]


def compare_fgsm(attacks: Attacks, images: Images, eps: float) -> list[dict[str, Any]]:
    """Against foolbox; as `compare_pgd`."""
    attack: PGD = attacks("fgsm")
    model, clean, labels, keys = images
    pixels = clean.float() / 255
    theirs = foolbox_run("LinfFastGradientAttack", model, pixels, labels, attack)
    ours = attack.perturb(model, pixels, labels, keys)
    return [_row("fgsm", "foolbox", attack.eps, clean, ours, theirs)]


def foolbox_run(
    name: str, model: nn.Module, pixels: Tensor, labels: Tensor, attack: PGD, **arguments: Any
) -> Tensor:
    """The adversarial images [n, 3, H, W] of a foolbox attack, at the eps of netkin's."""
    foolbox = installed("foolbox")
    assert foolbox is not None  # see require_foolbox
    their_model = foolbox.PyTorchModel(model, bounds=(0, 1), device=pixels.device)
    their_attack = getattr(foolbox.attacks, name)(random_start=False, **arguments)
    return their_attack.run(their_model, pixels, labels, epsilon=attack.eps)


def compare_mim(attacks: Attacks, images: Images, eps: float) -> list[dict[str, Any]]:
    """Against the published algorithm and torchattacks; foolbox's MIM does not normalise the
    gradient. Otherwise as `compare_pgd`."""
    attack: PGD = attacks("mim")
    model, clean, labels, keys = images
    pixels = clean.float() / 255
    ours = attack.perturb(model, pixels, labels, keys)
    theirs = mim_by_definition(model, pixels, labels, attack.eps, attack.steps, attack.momentum)
    rows = [_row("mim", "Dong et al., Alg. 1", attack.eps, clean, ours, theirs)]
    if (torchattacks := installed("torchattacks")) is None:
        return rows
    their_attack = torchattacks.MIFGSM(
        model, eps=attack.eps, alpha=attack.step_size, steps=attack.steps, decay=attack.momentum
    )
    return [
        *rows,
        _row("mim", "torchattacks", attack.eps, clean, ours, their_attack(pixels, labels)),
    ]


def mim_by_definition(
    model: nn.Module, pixels: Tensor, labels: Tensor, eps: float, steps: int, mu: float
) -> Tensor:
    """MI-FGSM after its paper (Dong et al. 2018, Algorithm 1), image by image: [n, 3, H, W]."""
    results = []
    for image, label in zip(pixels.split(1), labels.split(1), strict=True):
        x, g = image, torch.zeros_like(image)
        for _ in range(steps):
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(cross_entropy(model(x), label), x)
            g = mu * g + gradient / gradient.norm(p=1)
            x = x.detach() + eps / steps * g.sign()
            x = image + (x - image).clamp(-eps, eps)
            x = x.clamp(0, 1)
        results.append(x)
    return torch.cat(results)


class AuthorsDraws(AutoAttack):
    """AutoAttack with the random numbers of pyautoattack: torch's, seeded again by each attack.

    They depend on an image's place in its batch, so this serves for a check only.
    """

    def _start(self, x: Tensor, keys: list[str], name: str) -> None:
        if name in ("apgd-ce", "apgd-dlr", "apgd-t 1"):
            torch.manual_seed(self.seed)

    def _square_attack(self, model: nn.Module, keys: list[str]) -> SquareAttack:
        torch.manual_seed(self.seed)
        return SquareAttack(model, n_queries=self.queries, eps=self.eps, resc_schedule=False)


def compare_autoattack(attacks: Attacks, images: Images, eps: float) -> list[dict[str, Any]]:
    """Against the authors' package, at a given eps: at the dataset's own, the first attack may fool
    every image. Otherwise as `compare_pgd`."""
    ours: AutoAttack = attacks("autoattack", eps=eps, unfooled="clean")
    model, clean, labels, keys = images
    pixels = clean.float() / 255
    theirs = authors(model, pixels, labels, eps, ours.queries)
    same = AuthorsDraws(eps, queries=ours.queries, unfooled="clean")
    rows = []
    for attack, name in ((same, "autoattack, authors' random numbers"), (ours, "autoattack")):
        adversarial = attack.perturb(model, pixels, labels, keys)
        rows.append(
            {
                **_row(name, "pyautoattack", eps, clean, adversarial, theirs),
                "robust_accuracy": robust_accuracy(model, adversarial, labels),
                "robust_accuracy_of_reference": robust_accuracy(model, theirs, labels),
            }
        )
    return rows


def authors(model: nn.Module, pixels: Tensor, labels: Tensor, eps: float, queries: int) -> Tensor:
    """The standard version by the authors' own loop, all images in one batch: [n, 3, H, W]."""
    from pyautoattack import AutoAttack as Theirs

    attack = Theirs(model, eps=eps, seed=0, device=pixels.device)
    pixels = pixels.contiguous()  # their code takes views that other layouts do not allow
    attack.square.n_queries = queries
    with torch.random.fork_rng(devices=[]):
        return attack.run_standard_evaluation(pixels, labels, batch_size=len(pixels))[0]


def robust_accuracy(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """The share of images [n, 3, H, W] that the model classifies as their labels [n]."""
    with torch.no_grad():
        return float((model(pixels).argmax(dim=1) == labels).float().mean())


PACKAGES = ("foolbox", "pyautoattack", "torchattacks")
COMPARISONS: dict[str, Callable[[Attacks, Images, float], list[dict[str, Any]]]] = {
    "pgd": compare_pgd,
    "fgsm": compare_fgsm,
    "mim": compare_mim,
    "autoattack": compare_autoattack,
}
