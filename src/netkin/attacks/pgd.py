"""Projected gradient descent (Madry et al. 2018), L-infinity, untargeted."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from netkin.attacks.noise import uniform
from netkin.attacks.units import fraction
from netkin.errors import UserError


class PGD:
    """Steps along the sign of the cross-entropy's gradient, each projected onto the eps ball.

    Args:
        eps: radius of the ball, in pixels of [0, 1]; a number or a text such as "8/255".
        step_size: length of one step, likewise.
        steps: how many.
        random_start: begin at a uniform point of the ball, drawn per image from `seed` and the
            image's key, else at the image.
        seed: of the random start.
    """

    def __init__(
        self,
        eps: float | str = "8/255",
        step_size: float | str = "2/255",
        steps: int = 50,
        random_start: bool = True,
        seed: int = 0,
    ):
        self.eps = fraction(eps, "attack.eps")
        self.step_size = fraction(step_size, "attack.step_size")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise UserError(f"attack.steps must be a whole number of 1 or more, got {steps!r}")
        self.steps = steps
        self.random_start = random_start
        self.seed = seed

    def perturb(
        self, model: nn.Module, pixels: Tensor, labels: Tensor, keys: Sequence[str]
    ) -> Tensor:
        """See `netkin.attacks.Attack`. The loss is summed, so no image weighs on another's."""
        x = pixels
        if self.random_start:
            noise = uniform(pixels.shape[1:], self.eps, self.seed, keys)
            x = (pixels + noise.to(pixels.device)).clamp_(0, 1)
        with torch.enable_grad():
            for _ in range(self.steps):
                x.requires_grad_(True)
                loss = cross_entropy(model(x), labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x)
                with torch.no_grad():
                    delta = (x + self.step_size * gradient.sign() - pixels).clamp_(
                        -self.eps, self.eps
                    )
                    x = (pixels + delta).clamp_(0, 1)
        return x
