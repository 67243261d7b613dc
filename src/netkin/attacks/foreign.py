"""Attacks of other packages, and of papers' code: `attack(images, labels)`, made for one model.

    python evaluate.py attack=torchattacks attack.name=DIFGSM '+attack.arguments.resize_rate=0.8'
    python evaluate.py attack=foolbox attack.name=LinfBasicIterativeAttack
    python evaluate.py attack=foreign attack.make=my_module.MyAttack

netkin keeps their images in the eps ball and on the 8-bit grid, as those of every attack. They
draw random numbers for a whole batch from the global generators, which are seeded anew for each
batch by `seed` and its images' keys: the same command gives the same images, another
`hardware.batch_size` gives others. All else that tells their results apart is in the store's
identity: name, version, arguments, and of a module of one's own its text.
"""

import hashlib
import importlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netkin.attacks.base import Attack, generator, text_sha256, warn_once
from netkin.attacks.units import fraction, whole_number
from netkin.errors import UserError, check_known, first_line, near

Images = Callable[[Tensor, Tensor], Tensor]
"""Pixels [B, 3, H, W] in [0, 1] and labels [B] to adversarial pixels."""
HALF_A_LEVEL = 0.5 / 255


class Foreign(Attack):
    """An attack that is made for a model and called with images and labels.

    Args:
        make: `package.module.Class`, or a callable: `make(model, eps=..., **arguments)` returns
            the attack. It takes eps where it has such a parameter.
        eps: radius of the ball, in pixels of [0, 1]; a number or a string such as "8/255".
        arguments: the others of `make`.
        seed: of the random numbers of each batch.

    Raises UserError for a name that is not there, and arguments that it does not take.
    """

    eps: float
    module = install = ""

    def __init__(
        self,
        make: str | Callable[..., Images],
        eps: float | str = "8/255",
        arguments: Mapping[str, Any] | None = None,
        seed: int = 0,
    ):
        self.eps = fraction(eps, "eps")
        self.seed = whole_number(seed, "seed", least=0)
        self.maker = self._found(make) if isinstance(make, str) else make
        self.name = make if isinstance(make, str) else getattr(make, "__name__", "foreign")
        self.arguments = {
            key: fraction(value, key) if isinstance(value, str) and "/" in value else value
            for key, value in (arguments or {}).items()
        }
        known = inspect.signature(self.maker).parameters
        any_name = any(p.kind is p.VAR_KEYWORD for p in known.values())
        takes = [name for name in known if name not in ("self", "model", "eps")]
        for given in self.arguments:
            if given == "eps":
                raise UserError("arguments has eps: give it as eps, which netkin enforces")
            if not any_name:
                check_known(given, takes, f"arguments: {self.name} does not take {given!r}")
        self.takes_eps = "eps" in known

    def origin(self) -> Mapping[str, Any]:
        """What its results depend on beside its config: a package's version, a module's text."""
        origin = {"_made_by": self.name}
        named = [self.name.rpartition(".")[0]] if "." in self.name else []
        made = getattr(self.maker, "func", self.maker).__module__  # of a functools.partial
        for module in sorted({*named, made}):
            package = module.partition(".")[0]
            try:
                origin["_version"] = f"{package} {version(package)}"
            except PackageNotFoundError:
                told = origin.get("_source_sha256", "")
                origin["_source_sha256"] = f"{told}{text_sha256(module)}"
        return origin

    def perturb(
        self, model: nn.Module, pixels: Tensor, labels: Tensor, keys: Sequence[str]
    ) -> Tensor:
        with torch.enable_grad(), seeded(self.seed, keys, pixels.device):
            pixels = pixels.detach().contiguous()  # their code takes views of it
            changed = self.images(_Rows(model).eval(), pixels, labels).detach()
        if changed.shape == pixels.shape:
            moved = (changed - pixels).abs().amax().item()
            if moved > self.eps + HALF_A_LEVEL:
                warn_once(
                    f"{self.name} moves pixels by more than eps={self.eps:.3g}: its images are "
                    "projected into the ball"
                )
        return changed

    def images(self, model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images by the attack, made anew for a model."""
        eps = {"eps": self.eps} if self.takes_eps else {}
        return self.maker(model, **eps, **self.arguments)(pixels, labels)

    def _found(self, make: str) -> Callable[..., Images]:
        module, _, name = make.rpartition(".")
        try:
            found = importlib.import_module(module)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{make}: {first_line(error)}; "
                + (f"try pip install {self.install}" if self.install else "is it on PYTHONPATH?")
            ) from None
        if not callable(maker := getattr(found, name, None)):
            raise UserError(f"{module} has no attack {name!r}{near(name, public(found))}")
        return maker  # type: ignore[return-value]


class _OfPackage(Foreign):
    def __init__(
        self,
        name: str,
        eps: float | str = "8/255",
        arguments: Mapping[str, Any] | None = None,
        seed: int = 0,
    ):
        super().__init__(f"{self.module}.{name}", eps, arguments, seed)


class Torchattacks(_OfPackage):
    """A class of torchattacks (Kim 2020), such as DIFGSM, TIFGSM, VMIFGSM, SINIFGSM or Jitter.

    Args:
        name: of the class.
        eps, arguments, seed: as of `Foreign`.
    """

    module, install = "torchattacks", "--no-deps torchattacks"  # which pin an old requests


class Foolbox(_OfPackage):
    """A class of foolbox.attacks (Rauber et al. 2020), such as LinfBasicIterativeAttack.

    Args:
        name: of the class.
        eps, arguments, seed: as of `Foreign`; the arguments are those of the class's constructor.
    """

    module, install = "foolbox.attacks", "foolbox"

    def images(self, model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
        import foolbox

        bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=pixels.device)
        attack: Any = self.maker(**self.arguments)
        return attack(bounded, pixels, labels, epsilons=self.eps)[1]


class _Rows(nn.Module):
    """A model whose gradients of pixels are contiguous, whatever its memory format."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.requires_grad:
            pixels.register_hook(torch.Tensor.contiguous)
        return self.model(pixels)


@contextmanager
def seeded(seed: int, keys: Sequence[str], device: torch.device) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python in a block; restore them after it."""
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    drawn = int(generator(seed, digest).integers(2**32))
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(drawn)
        np.random.seed(drawn)
        random.seed(drawn)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def public(module: Any) -> list[str]:
    """The classes of a module."""
    return [name for name, value in vars(module).items() if isinstance(value, type)]
