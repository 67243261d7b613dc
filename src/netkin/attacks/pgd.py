"""Projected gradient descent (Madry et al. 2018), L-infinity, untargeted, with FGSM and MIM."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from netkin.attacks.base import Passes, Stepwise, uniform
from netkin.attacks.units import flag, fraction, non_negative, whole_number


class PGD(Stepwise):
    """Steps along the sign of the cross-entropy's gradient, each projected onto the eps ball.

    One step of length eps from the image itself is FGSM (Goodfellow et al. 2015); a momentum of 1
    and steps of eps / steps from the image itself are MI-FGSM (Dong et al. 2018, Eq. 6 and 7).

    Args:
        eps: radius of the ball, in pixels of [0, 1]; a number or a string such as "8/255".
        step_size: length of one step, likewise; None takes 2.5 eps / steps, so that steps can cross
            the ball (Madry et al. 2018), and with momentum eps / steps.
        steps: how many.
        random_start: begin at a uniform point of the ball, drawn per image from `seed` and the
            image's key, else at the image.
        seed: of the random start.
        momentum: how much of the sum of earlier gradients, each over its mean absolute value, is
            kept from step to step; 0 follows the gradient alone.

    Raises UserError for an argument outside its range.
    """

    eps: float

    def __init__(
        self,
        eps: float | str = "8/255",
        step_size: float | str | None = "2/255",
        steps: int = 50,
        random_start: bool = True,
        seed: int = 0,
        momentum: float = 0.0,
    ):
        self.eps = fraction(eps, "eps")
        self.steps = whole_number(steps, "steps")
        self.momentum = non_negative(momentum, "momentum")
        reach = 1.0 if self.momentum else 2.5
        default = reach * self.eps / self.steps
        self.step_size = default if step_size is None else fraction(step_size, "step_size")
        self.random_start = flag(random_start, "random_start")
        self.seed = whole_number(seed, "seed", least=0)

    def perturb(
        self, model: nn.Module, pixels: Tensor, labels: Tensor, keys: Sequence[str]
    ) -> Tensor:
        """See `netkin.attacks.Attack`. The loss is summed: images do not affect each other."""
        x = pixels.detach()
        velocity = torch.zeros_like(pixels)
        if self.random_start:
            noise = uniform(pixels.shape[1:], self.eps, self.seed, keys)
            x = (pixels + noise.to(pixels.device)).clamp_(0, 1)
        with torch.enable_grad():
            for _ in range(self.steps):
                x.requires_grad_(True)
                loss = cross_entropy(model(x), labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x)
                with torch.no_grad():
                    if self.momentum:
                        scale = gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
                        velocity = self.momentum * velocity + gradient / scale.clamp_min(TINY)
                        gradient = velocity
                    delta = (x + self.step_size * gradient.sign() - pixels).clamp_(
                        -self.eps, self.eps
                    )
                    x = (pixels + delta).clamp_(0, 1)
        return x

    def passes(self, model: nn.Module, classes: int) -> Passes:
        return Passes(forward=self.steps, backward=self.steps)


TINY = torch.finfo(torch.float32).tiny
"""Divides a gradient of zero in place of its own mean."""
