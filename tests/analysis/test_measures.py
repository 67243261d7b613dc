"""Other measures of similarity: parity with definitions and scikit-learn, and the study."""

from itertools import permutations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from torch.nn.functional import cross_entropy

from netkin.analysis import measures
from netkin.passes import features
from netkin.similarity import resample
from netkin.zoo.build import Classifier, Task, build
from netkin.zoo.parse import parse_members
from tests.helpers import MEMBERS, four_store, has_figures, on_four, smoothed_score

ONES = np.ones((1, 50))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.slow
@given(st.integers(0, 1000))
def test_error_consistency_is_cohens_kappa(seed: int) -> None:
    correct = rng(seed).random((4, 50)) < [[0.5], [0.8], [0.9], [1.0]]
    found = measures.error_consistency(correct, ONES)[0]
    for a in range(4):
        for b in range(4):
            if correct[a].all() and correct[b].all():
                assert np.isnan(found[a, b])
            else:
                expected = cohen_kappa_score(correct[a], correct[b])
                assert found[a, b] == pytest.approx(expected, abs=1e-9)


def features_of(*shape: int, seed: int) -> np.ndarray:
    return rng(seed).normal(size=shape).astype("f")


def unbiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, Eq. 5, as printed."""
    n = len(k)
    k, m = (a.astype(float) * (1 - np.eye(n)) for a in (k, m))
    one = np.ones(n)
    crossed = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    inner = np.trace(k @ m) + crossed - 2 / (n - 2) * (one @ k @ m @ one)
    return float(inner / (n * (n - 3)))


def test_cka_is_its_definition_and_does_not_know_axes_or_scale() -> None:
    x, y = features_of(50, 7, seed=0), features_of(50, 12, seed=1)
    y[:, :7] += x
    turn = np.linalg.qr(rng(2).normal(size=(7, 7)))[0]
    grams = np.stack([measures.gram(z) for z in (x, y, 3 * x @ turn.astype("f") + 5)])
    found = measures.linear_cka(grams, ONES)[0]
    k, m = x @ x.T, y @ y.T  # neither centred nor scaled
    expected = unbiased_hsic(k, m) / np.sqrt(unbiased_hsic(k, k) * unbiased_hsic(m, m))
    assert found[0, 1] == pytest.approx(expected, rel=1e-4)
    assert found[0, 2] == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(found, found.T)


def test_cka_of_a_draw_is_over_tuples_of_different_images() -> None:
    """The U-statistic of HSIC, tuple by tuple: K_ij (L_ij + L_qr - 2 L_iq)."""
    grams = np.stack([measures.gram(features_of(6, 4, seed=i)) for i in range(2)])
    count = np.array([2, 0, 1, 3, 1, 1])
    tuples = np.array(list(permutations(range(6), 4)))
    weight = count[tuples].prod(axis=1)
    i, j, q, r = tuples.T

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        return float((weight * k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])).sum() / weight.sum())

    k, m = grams.astype(float)
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    found = measures.linear_cka(grams, count[None])[0]
    assert found[0, 1] == pytest.approx(expected, rel=1e-4)
    assert np.isnan(measures.linear_cka(grams, np.array([[4, 1, 1, 0, 0, 0]]))).all()


def test_cka_of_unrelated_features_is_0() -> None:
    """Wide features of few images, independent or of shuffled images, in draws too."""
    x, y = features_of(500, 2048, seed=0), features_of(500, 2048, seed=1)
    real = np.maximum(features_of(500, 20, seed=2) @ features_of(20, 512, seed=3), 0)  # low rank
    sets = (x, y, real, rng(4).permutation(real))
    grams = np.stack([measures.gram(z) for z in sets])
    found = measures.linear_cka(grams, np.vstack([np.ones(500), resample(500, 3)]))
    assert np.abs(found[:, [0, 0, 2], [1, 2, 3]]).max() < 0.02
    np.testing.assert_allclose(found[:, range(4), range(4)], 1, atol=1e-5)


def test_agreement_by_hand() -> None:
    predictions = np.array([[0, 1, 2, 2], [0, 1, 0, 0]])
    assert measures.prediction_agreement(predictions, np.ones((1, 4)))[0, 0, 1] == 0.5


def test_draws_are_the_measures_of_the_drawn_images() -> None:
    images, counts = 30, resample(30, 4, seed=2)
    predictions = rng().integers(3, size=(3, images))
    correct = rng(1).random((3, images)) < 0.7
    cosines = rng(2).normal(size=(images, 3, 3))
    for draw, count in enumerate(counts.astype(int)):
        picked, ones = np.repeat(np.arange(images), count), np.ones((1, images))
        for drawn, direct in (
            (
                measures.prediction_agreement(predictions, counts),
                measures.prediction_agreement(predictions[:, picked], ones),
            ),
            (
                measures.error_consistency(correct, counts),
                measures.error_consistency(correct[:, picked], ones),
            ),
            (measures.mean_cosine(cosines, counts), measures.mean_cosine(cosines[picked], ones)),
        ):
            np.testing.assert_allclose(drawn[draw], direct[0], rtol=1e-4, atol=1e-5)


def test_stability_tells_noise_from_models() -> None:
    matrix = rng().normal(size=(6, 6))
    matrix += matrix.T
    noise = rng(1).normal(size=(42, 6, 6))
    calm, wild = (
        measures.Measure.of("", np.vstack([matrix[None], matrix + k * noise]), 40, 1.0).summary()
        for k in (0.1, 3)
    )
    assert calm["noise"] == pytest.approx(0.1, rel=0.2) and calm["agreement"] > 0.95
    assert wild["agreement"] < 0.8 and wild["spread"] == calm["spread"]


def test_a_sample_is_seeded_and_of_different_images() -> None:
    positions = features.draw_images(40, 25, seed=3)
    assert positions == features.draw_images(40, 25, seed=3)
    assert len(set(positions)) == 25 and [*positions] == sorted(positions)


@pytest.fixture(scope="module")
def network() -> tuple[Classifier, torch.Tensor, torch.Tensor]:
    """A small network, images and labels."""
    (member,) = parse_members(["test_resnet"], at_least=1)
    classifier = build(member, Task("digits", 10, "train", 32)).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return classifier, pixels, torch.arange(6)


def test_features_are_what_the_last_layer_sees(network: tuple) -> None:
    classifier, pixels, _ = network
    found = features.features(classifier, {"pixels": pixels})
    with torch.no_grad():
        logits = classifier(pixels / 255)
        torch.testing.assert_close(classifier.net.get_classifier()(found), logits)
        x = (pixels / 255 - classifier.mean) / classifier.std
        seen = features._input_of_last_linear(classifier.net, x)
    torch.testing.assert_close(found, seen)


def test_gradients_point_along_the_cross_entropys(network: tuple) -> None:
    classifier, pixels, labels = network
    found = features.gradients(classifier, {"pixels": pixels, "labels": labels}).float()
    x = (pixels / 255).requires_grad_(True)
    cross_entropy(classifier(x), labels, reduction="sum").backward()
    assert x.grad is not None
    expected = torch.nn.functional.normalize(x.grad.flatten(1))
    torch.testing.assert_close(
        (found.flatten(1) * expected).sum(1), torch.ones(6), atol=2e-3, rtol=0
    )
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.ones(6), atol=2e-3, rtol=0)


def test_gradients_of_a_certain_model_have_a_direction(network: tuple) -> None:
    """Where softmax is exactly 1 the cross-entropy is flat in float32."""

    class Certain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            score = 1e3 + x.flatten(1).sum(1)
            return torch.stack([score, -score], dim=1)

    certain = Classifier(Certain(), "certain", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    of = {"pixels": network[1], "labels": torch.zeros(6, dtype=torch.long)}
    found = features.gradients(certain, of).flatten(1).float()
    torch.testing.assert_close(found, torch.full_like(found, -(3072**-0.5)), atol=1e-4, rtol=0)


def test_measures(folder: Path) -> None:
    """A twin is its model by every measure; what is in the store is not made again."""
    sizes = ("measures.permutations=99",)
    fast = ("measures.seconds=0.01", "measures.bootstrap=20")
    run = on_four("measures", folder, *sizes, *fast)
    has_figures(run, "measures_scatter", "measures_correlations")
    table = pl.read_csv(run / "measures_scatter.csv")
    (twins,) = table.filter(a="test_byobnet", b="twin").to_dicts()
    for name in ("prediction_agreement", "gradient_cosine", "linear_cka"):
        assert twins[name] == pytest.approx(1, abs=2e-3), name
    assert twins["error_consistency"] == pytest.approx(1)
    (others,) = table.filter(a="test_byobnet", b="vit_ti").to_dicts()
    assert all(others[name] < twins[name] for name in others if name not in "ab")
    # 100 images: all of the subset
    assert others["similarity"] == pytest.approx(smoothed_score(folder))
    links = pl.read_csv(run / "measures_correlations.csv")
    assert links["images_low"].null_count() == links["models_low"].null_count() == links.height
    assert links["noise_ceiling"].is_between(0, 1).all()
    assert set(links["permutations"]) <= {24, 0}  # 4 models; 0 where undefined
    summary = pl.read_csv(run / "measures.csv")
    assert (summary["seconds"] > 0).all() and (summary["noise"] >= 0).all()

    kept = sorted(four_store(folder).glob("digits/quick-*/measures/*/*/*.safetensors"))
    assert len(kept) == 4 * 2  # features and gradients, in one shard
    lost = next(path for path in kept if path.match("gradients-*/vit_ti/00000.safetensors"))
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in kept if path != lost}
    again = on_four("measures", folder, *sizes, *fast)
    assert lost.is_file() and {p: p.stat().st_mtime_ns for p in before} == before
    assert pl.read_csv(again / "measures_scatter.csv").equals(table)
    assert {path.parent.name for path in kept} == {*MEMBERS}
