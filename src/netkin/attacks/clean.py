"""The attack that changes nothing: a control."""

from collections.abc import Sequence

from torch import Tensor, nn

from netkin.attacks.base import Attack, Passes


class Clean(Attack):
    """Returns the images unchanged.

    Between models of one view it fools no target. Between others it shows how often a target errs
    on the source's view of the image, because of crop and resize alone.
    """

    def perturb(
        self, model: nn.Module, pixels: Tensor, labels: Tensor, keys: Sequence[str]
    ) -> Tensor:
        """See `netkin.attacks.Attack`."""
        return pixels

    def passes(self, model: nn.Module, classes: int) -> Passes:
        """None: the model is not run."""
        return Passes(forward=0, backward=0)
