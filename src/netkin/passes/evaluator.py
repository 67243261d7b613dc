"""Runs a classifier on images, clean or adversarial, without gradients."""

from torch import Tensor, nn

from netkin.zoo.build import Classifier
from netkin.zoo.execution import Execution, exact_float32, prepare


class Evaluator(nn.Module):
    """A classifier run by an Execution, which is tested on its first two images."""

    def __init__(self, classifier: Classifier, execution: Execution):
        super().__init__()
        self.model, self.execution, self.prepared = classifier.eval(), execution, False

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] to logits [B, K], B > 0."""
        with exact_float32(self.execution.precision):
            if not self.prepared:
                self.model, self.prepared = prepare(self.model, self.execution, pixels[:2]), True
            return self.model(pixels)
