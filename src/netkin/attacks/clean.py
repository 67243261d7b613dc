"""The attack that changes nothing: a control."""

from collections.abc import Sequence

from torch import Tensor, nn


class Clean:
    """Hands the images back as they are.

    Between models of one view nothing is ever fooled by it; between others it shows how often a
    target errs on a source's view of the image, because of crop and resize alone.
    """

    def perturb(
        self, model: nn.Module, pixels: Tensor, labels: Tensor, keys: Sequence[str]
    ) -> Tensor:
        """See `netkin.attacks.Attack`."""
        return pixels
