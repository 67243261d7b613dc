"""Test accuracies while a model is trained: of the model, of each head, of the moving average."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from netkin.training.data import as_pixels
from netkin.zoo.build import Classifier

BATCH = 250
"""Test images through the model at once."""


def evaluate(
    classifier: Classifier,
    images: TensorDataset,
    two_heads: bool = False,
    average: nn.Module | None = None,
    first_batch: bool = False,
) -> dict[str, float]:
    """Accuracies in [0, 1]; the classifier is in training mode afterwards.

    Args:
        classifier: on its device; one with two heads predicts with their mean.
        images: pixels [I, 3, H, W] uint8 and labels [I].
        two_heads: whether it is a distilled ViT, whose heads are evaluated separately, too.
        average: the same network with a moving average of the weights, evaluated too.
        first_batch: evaluate one batch only.

    Returns:
        test_accuracy and, where they apply, test_accuracy_class_head,
        test_accuracy_distilled_head and test_accuracy_ema.
    """
    accuracies = {"test_accuracy": _accuracy(classifier, images, None, first_batch)}
    if two_heads:
        for head, name in enumerate(("class", "distilled")):
            key = f"test_accuracy_{name}_head"
            accuracies[key] = _accuracy(classifier, images, head, first_batch)
    if average is not None:
        trained, classifier.net = classifier.net, average
        accuracies["test_accuracy_ema"] = _accuracy(classifier, images, None, first_batch)
        classifier.net = trained
    classifier.train()
    return accuracies


def one_head(classifier: Classifier, pixels: Tensor, head: int) -> Tensor:
    """Logits [B, K] of the class head (0) or the distillation head (1) of a distilled ViT.

    Args:
        classifier: whose `net` is a distilled ViT of timm.
        pixels: [B, 3, H, W] in [0, 1].
        head: 0 or 1.
    """
    net: Any = classifier.net
    features = net.forward_features(classifier.normalise(pixels))
    return (net.head, net.head_dist)[head](features[:, head])


def _accuracy(
    classifier: Classifier, images: TensorDataset, head: int | None, first_batch: bool
) -> float:
    classifier.eval()
    correct, device = 0, classifier.mean.device
    with torch.no_grad():
        for batch, labels in DataLoader(images, BATCH):
            pixels = as_pixels(batch.to(device))
            logits = classifier(pixels) if head is None else one_head(classifier, pixels, head)
            correct += int((logits.argmax(dim=1) == labels.to(device)).sum())
            if first_batch:
                return correct / len(labels)
    return correct / len(images)
