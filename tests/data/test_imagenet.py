"""The paper's setting without its data: JPEG files, true sizes, published weights from the caches.

The weights are random but for the last layer, which is solved for so that every model classifies
the four images as the label file says.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform

from netkin.store.files import read_tensors
from netkin.zoo import sources
from tests import helpers
from tests.conftest import run_here
from tests.zoo.hub_cache import CheapInit, offline, write_hub

WNIDS = ImageNetInfo().label_names()
SIZES = {"rexnet_150": 224, "efficientnet_b2": 256}
TAGS = {"rexnet_150": "nav_in1k", "efficientnet_b2": "ra_in1k"}
PARAMS = json.loads((Path(__file__).parents[1] / "zoo" / "params69.json").read_text())
LABELS = [0, 281, 281, 999]


def write_images(root: Path) -> list[Image.Image]:
    """Four JPEG files of several shapes, and their labels, as a flat ImageNet."""
    rng = np.random.default_rng(0)
    images, lines = [], []
    (root / "val").mkdir(parents=True)
    for i, label in enumerate(LABELS):
        height, width = [(300, 400), (500, 333), (280, 280), (640, 300)][i % 4]
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        name = f"ILSVRC2012_val_{i + 1:08d}.JPEG"
        Image.fromarray(coarse).resize((width, height)).save(root / "val" / name, quality=92)
        images.append(Image.open(root / "val" / name).convert("RGB"))
        lines.append(f"{name} {WNIDS[label]}")
    (root / "labels.txt").write_text("\n".join(lines) + "\n")
    return images


def solved(name: str, images: list[Image.Image]) -> dict[str, torch.Tensor]:
    """Weights of an architecture whose head tells the images apart."""
    torch.manual_seed(0)
    with CheapInit():
        net = timm.create_model(name).eval()
    config = sources.config(name)
    transform = create_transform(
        SIZES[name],
        crop_pct=config["crop_pct"],
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )
    with torch.no_grad():
        # Random features hardly differ between images; normalising by this batch's own statistics
        # spreads them.
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
                module.reset_running_stats()
        net.train()
        seen: list[torch.Tensor] = []
        head = next(m for m in reversed(list(net.modules())) if isinstance(m, torch.nn.Linear))
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        batch = torch.stack([transform(image) for image in images])  # type: ignore[operator]
        net(batch)
        net.eval()
        seen.clear()
        net(batch)
        hook.remove()
        (features,) = seen  # [4, F]
        wanted = torch.zeros(len(LABELS), 1000)
        wanted[range(len(LABELS)), LABELS] = 10
        head.weight.copy_((torch.linalg.pinv(features.double()) @ wanted.double()).T.float())
        head.bias.zero_()
        assert net(batch).argmax(1).tolist() == LABELS
    return net.state_dict()


@pytest.mark.slow
def test_two_of_the_69_from_jpeg_to_similarity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(tmp_path, monkeypatch)
    images = write_images(tmp_path / "imagenet")
    for name, tag in TAGS.items():
        write_hub(tmp_path, f"timm/{name}.{tag}", "model.safetensors", solved(name, images))
    done = run_here(
        *("experiment=pairwise", "attack=pgd", "attack.steps=1", "subset=full", "logger=none"),
        *("dataset=imagenet", f"dataset.root={tmp_path / 'imagenet'}", "hydra.run.dir=run"),
        *(f"dataset.labels={tmp_path / 'imagenet' / 'labels.txt'}", "hardware.batch_size=4"),
        f"model.members=[{','.join(SIZES)}]",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    models = pl.read_csv(tmp_path / "run" / "models.csv")
    assert models["input_size"].to_list() == list(SIZES.values())
    assert models["clean_accuracy"].to_list() == [1, 1]
    assert models["params"].to_list() == [PARAMS[name] for name in SIZES]
    similarity = pl.read_csv(tmp_path / "run" / "similarity.csv").drop("").to_numpy()
    assert np.isfinite(similarity).all() and (similarity == similarity.T).all()
    assert (pl.read_csv(tmp_path / "run" / "pairs.csv")["n"] == 4).all()
    assert pl.read_csv(tmp_path / "run" / "resize_errors.csv").height == 2
    (subset,) = (tmp_path / "store" / "imagenet").glob("full-*")
    for name, size in SIZES.items():
        (file,) = subset.glob(f"pgd-*/adversarial/{name}/00000.safetensors")
        assert helpers.stored_images(file)[0].shape == (4, 3, size, size)
    views = {tuple(read_tensors(f)["pixels"].shape) for f in subset.glob("views/*/*.safetensors")}
    assert views == {(4, 3, size, size) for size in SIZES.values()}
    (identity,) = subset.glob("clean/efficientnet_b2/identity.json")
    view = json.loads(identity.read_text())["model"]["preprocessing"]["view"]
    assert view["crop_pct"] == sources.config("efficientnet_b2")["crop_pct"]
