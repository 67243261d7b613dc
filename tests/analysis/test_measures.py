"""Other measures of similarity: parity with definitions and scikit-learn, and the study."""

import re
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from polars.testing import assert_frame_equal
from torch.nn.functional import cross_entropy

from experiments.studies import measures as study
from netkin.analysis import measures
from netkin.analysis.matrix import pair_index, pair_values
from netkin.analysis.noise import Sampled
from netkin.passes import features
from netkin.similarity import Outcomes, resample, with_intervals
from netkin.zoo.build import Classifier, Task, build
from netkin.zoo.parse import parse_members
from tests.helpers import MEMBERS, four_store, has_figures, on_four, overrides, smoothed_score


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(st.integers(0, 1000))
@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in a docstring of theirs
def test_error_consistency_and_capa_are_their_authors(seed: int) -> None:
    """Parity with lm-sim, of the authors of CAPA."""
    from lmsim import metrics as lmsim

    logits = 3 * rng(seed).normal(size=(3, 20, 5))
    soft, labels = np.exp(logits), rng(seed + 1).integers(5, size=20)
    soft /= soft.sum(axis=2, keepdims=True)
    labels[:3] = soft.argmax(axis=2)[range(3), range(3)]  # no model is always wrong
    hard, one = np.eye(5)[soft.argmax(axis=2)], np.ones((1, 20))
    found = (
        (measures.capa(soft, labels, one), lmsim.CAPA(), soft),
        (measures.capa(hard, labels, one), lmsim.CAPA(prob=False), hard),
        (measures.error_consistency(hard.argmax(axis=2) == labels, one), lmsim.EC(), hard),
    )
    for ((matrix,), (low, high)), theirs, outputs in found:
        values = pair_values(matrix)
        assert ((low <= values + 1e-12) & (values <= high + 1e-12))[~np.isnan(values)].all()
        np.testing.assert_array_equal(matrix, matrix.T)
        for a, b in ((0, 1), (1, 2), (2, 2)):
            expected = theirs.compute_k(list(outputs[a]), list(outputs[b]), labels.tolist())
            assert matrix[a, b] == pytest.approx(expected, abs=1e-12)


def test_agreement_beyond_chance_is_0_of_independent_models_and_1_of_equal_ones() -> None:
    labels = rng().integers(4, size=20_000)
    right = rng(1).random((3, 20_000)) < [[0.5], [0.7], [0.9]]
    other = (labels + rng(2).integers(1, 4, right.shape)) % 4  # all wrong classes alike
    hard = np.eye(4)[np.where(right, labels, other)]
    ones = np.ones((1, 20_000))
    for (found,), _ in (measures.capa(hard, labels, ones), measures.error_consistency(right, ones)):
        np.testing.assert_allclose(found, np.eye(3), atol=0.03)
        np.testing.assert_allclose(np.diag(found), 1)
    (never,), _ = measures.error_consistency(np.ones((2, 50), bool), np.ones((1, 50)))
    assert np.isnan(never).all()  # two models that do not err


def classes_of(images: int, same: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What three models predict on adversarial images, [3, 3, I], and the labels: each source errs,
    and each target does on most images, by the source's class in a share of them, and by the class
    after the label in half of the others."""
    r = rng(seed)
    labels = r.integers(5, size=images)
    likely = r.random((3, 3, images)) < 0.5
    wrong = (labels + np.where(likely, 1, r.integers(2, 5, likely.shape))) % 5
    own = wrong[range(3), range(3)][:, None]
    classes = np.where(r.random(likely.shape) < same, own, wrong)
    held = (r.random(likely.shape) < 0.2) & ~np.eye(3, dtype=bool)[:, :, None]
    classes = np.where(held, labels, classes)
    correct = r.random((3, images)) < 0.9
    return np.where(correct[:, None] & correct, classes, -1), labels


def mistakes_of(classes: np.ndarray, labels: np.ndarray) -> pl.DataFrame:
    n, images = len(classes), len(labels)
    outcomes = Outcomes(
        tuple("abcd"[:n]), tuple(map(str, range(images))), np.ones((n, images), bool), classes > 0
    )
    return measures.mistake_table(outcomes, classes, labels)


@given(st.integers(0, 1000), st.integers(1, 60))
def test_same_mistakes_word_by_word(seed: int, images: int) -> None:
    classes, labels = classes_of(images, 0.3, seed)
    table = mistakes_of(classes, labels)
    (matrix,), limits = measures.same_mistake(classes, labels, np.ones((1, images)))
    order = [("b", "a"), ("c", "a"), ("c", "b")]  # of pair_values
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.isin(np.diag(matrix)[~np.isnan(np.diag(matrix))], 1.0).all()
    for row in table.to_dicts():
        a, b = "abcd".index(row["a"]), "abcd".index(row["b"])
        equal, chance, known = [], 0.0, 0
        for source, target in ((a, b), (b, a)):
            own, theirs = classes[source, source], classes[source, target]
            both = np.flatnonzero((own >= 0) & (own != labels) & (theirs >= 0) & (theirs != labels))
            equal += [own[i] == theirs[i] for i in both]
            for i in both:
                others = [j for j in both if j != i and labels[j] == labels[i]]
                known += bool(others)
                chance += np.mean([own[i] == theirs[j] for j in others]) if others else 0
        assert row["mistakes"] == len(equal)
        if equal:
            assert row["same_mistake"] == pytest.approx(np.mean(equal)) == matrix[a, b]
            low, high = (end[order.index((row["b"], row["a"]))] for end in limits)
            assert low == row["same_mistake_low"] <= row["same_mistake"]
            assert row["same_mistake"] <= row["same_mistake_high"] == high
        else:
            assert row["same_mistake"] is None and np.isnan(matrix[a, b])
        assert row["same_mistake_chance"] == (pytest.approx(chance / known) if known else None)


def test_independent_mistakes_are_equal_as_often_as_by_chance() -> None:
    """A class that is often mistaken for another is no relation: 1 / (K - 1) is 0.25 here."""
    table = mistakes_of(*classes_of(20_000, 0.0))
    np.testing.assert_allclose(table["same_mistake"], 1 / 4 + 1 / 12, atol=0.015)
    np.testing.assert_allclose(table["same_mistake_chance"], 1 / 4 + 1 / 12, atol=0.01)
    related = mistakes_of(*classes_of(20_000, 0.4))
    np.testing.assert_allclose(related["same_mistake"], 0.4 + 0.6 / 3, atol=0.015)
    np.testing.assert_allclose(related["same_mistake_chance"], 1 / 3, atol=0.01)


def test_a_share_of_one_an_image_has_the_interval_of_a_score() -> None:
    k = rng().integers(0, 3, (5, 30)) / 2
    p, (low, high) = measures.share(k, np.ones_like(k))
    always, half = ((k == value).sum(axis=1) for value in (1, 0.5))
    expected = with_intervals(always, half, np.full(5, 30))
    for found, score in zip((p, low, high), expected, strict=True):
        np.testing.assert_allclose(np.log(100 * found), score, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("images", [5, 20, 100])
@pytest.mark.parametrize("rate", [0.02, 0.2, 0.5])
def test_intervals_of_shares_cover(images: int, rate: float) -> None:
    """Of images that count once or twice, whose two counts are equal in half of the cases."""
    r = rng(images)
    twice = r.random((2000, images)) < 0.4
    first, again = r.random((2, 2000, images)) < rate
    again = np.where(r.random(first.shape) < 0.5, first, again)
    _, (low, high) = measures.share(1.0 * first + twice * again, 1.0 + twice)
    assert ((low <= rate) & (rate <= high)).mean() > 0.94


def features_of(*shape: int, seed: int) -> np.ndarray:
    return rng(seed).normal(size=shape).astype("f")


def test_cka_is_over_tuples_of_different_images() -> None:
    """The U-statistic of HSIC, tuple by tuple, of draws too: K_ij (L_ij + L_qr - 2 L_iq)."""
    x = [features_of(6, 4, seed=i) for i in range(2)]
    grams = np.stack(list(map(measures.gram, x)))
    i, j, q, r = np.array(list(permutations(range(6), 4))).T
    for count in (np.ones(6), np.array([2, 0, 1, 3, 1, 1])):
        weight = count[[i, j, q, r]].prod(axis=0)

        def hsic(k: np.ndarray, m: np.ndarray, weight: np.ndarray = weight) -> float:
            return float((weight * k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])).sum())

        k, m = (z.astype(float) @ z.T for z in x)  # neither centred nor scaled
        expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
        found = measures.linear_cka(grams, count[None])[0]
        assert found[0, 1] == found[1, 0] == pytest.approx(expected, rel=1e-3)
    assert np.isnan(measures.linear_cka(grams, np.array([[4, 1, 1, 0, 0, 0]]))).all()


def test_cka_of_unrelated_features_is_0_and_of_turned_ones_1() -> None:
    """Wide features of few images, independent or of shuffled images, in draws too."""
    x, y = features_of(500, 2048, seed=0), features_of(500, 2048, seed=1)
    real = np.maximum(features_of(500, 20, seed=2) @ features_of(20, 512, seed=3), 0)  # low rank
    turn = np.linalg.qr(rng(5).normal(size=(512, 512)))[0].astype("f")
    sets = (x, y, real, rng(4).permutation(real), 3 * real @ turn + 5)
    grams = np.stack([measures.gram(z) for z in sets])
    found = measures.linear_cka(grams, np.vstack([np.ones(500), resample(500, 3)]))
    assert np.abs(found[:, [0, 0, 2], [1, 2, 3]]).max() < 0.02
    np.testing.assert_allclose(found[:, [*range(5), 2], [*range(5), 4]], 1, atol=1e-4)


def test_draws_are_the_measures_of_the_drawn_images() -> None:
    predictions, (classes, labels) = rng().integers(3, size=(3, 30)), classes_of(30, 0.5)
    counts, whole = resample(30, 4, seed=2), np.ones((1, 30))
    cases: list[tuple[Any, ...]] = [
        (measures.prediction_agreement, predictions),
        (measures.error_consistency, predictions > 0),
        (measures.same_mistake, classes, labels),
    ]
    for measure, *of in cases:
        drawn, _ = measure(*of, counts)
        for found, count in zip(drawn, counts.astype(int), strict=True):
            picked = np.repeat(np.arange(30), count)
            (direct,), _ = measure(*(each[..., picked] for each in of), whole)
            np.testing.assert_allclose(found, direct, atol=1e-12)
    (agreement,), _ = measures.prediction_agreement(predictions, whole)
    assert agreement[0, 1] == pytest.approx(np.mean(predictions[0] == predictions[1]))


def test_stability_tells_noise_from_models() -> None:
    matrix = rng().normal(size=(6, 6))
    matrix += matrix.T
    noise = rng(1).normal(size=(42, 6, 6))
    samples = [Sampled(matrix, matrix + k * noise[:40], matrix + k * noise[40:]) for k in (0.1, 3)]
    calm, wild = (measures.Measure("", of).summary() for of in samples)
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
    found = features.gradients(classifier, {"pixels": pixels, "labels": labels}).float().flatten(1)
    x = (pixels / 255).requires_grad_(True)
    cross_entropy(classifier(x), labels, reduction="sum").backward()
    assert x.grad is not None
    expected = torch.nn.functional.normalize(x.grad.flatten(1))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


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


def of_lines(models: int, slope: float, seed: int = 0) -> measures.Use:
    """Values of pairs, on 4 samples of images, about a line of the first of three measures."""
    at, r = np.array(pair_index(models)).T, rng(seed)
    noise = r.normal(size=(2, 3, 4, models, models))
    x, y = noise[0] + noise[0].swapaxes(2, 3), noise[1, 0] + noise[1, 0].swapaxes(1, 2)
    x[0] = x[0, :1]
    values = (slope * x[0] + 0.3 * y)[:, *at.T]
    return measures.Use(values, at, dict(zip("abc", x, strict=True)))


@pytest.mark.parametrize("single", [False, True])
def test_held_out_is_a_line_fitted_on_other_models(single: bool) -> None:
    use = of_lines(7, 0.5)
    use.values[1, 3] = np.nan
    if single:
        use = measures.Use(use.values[:, :7], np.arange(7)[:, None], {"a": use.measures["a"][:, 0]})
    x = use.measures["a"][:, *use.models.T]
    left, total = 0.0, 0.0
    for i, models in enumerate(use.models):
        others = ~np.isin(use.models, models).any(axis=1)
        known = ~np.isnan(use.values[:, others])
        known_x, known_y = (of[:, others][known] for of in (x, use.values))
        y, line = use.values[:, i], np.polyfit(known_x, known_y, 1)
        left += np.nansum((y - np.polyval(line, x[:, i])) ** 2)
        total += np.nansum((y - known_y.mean()) ** 2)
    found = measures.held_out(use.measures["a"], use, np.arange(7)[None])
    assert found == pytest.approx(1 - left / total)


def test_a_measure_that_predicts_is_found_and_chance_is_not() -> None:
    """A claim on shuffled models is rarer than 5%: experiments/results/measures.md."""
    related = measures.predict(of_lines(10, -0.5), 199)
    best = related["r2"].arg_max()
    assert best is not None and related["measure"][best] == "a" and related["p"][0] == 1 / 200
    assert related["r"][0] < -0.7 and related["low"][0] > 0.3
    claims = [measures.predict(of_lines(7, 0, seed), 99) for seed in range(20)]
    found = [of.filter((pl.col("low") > 0) & (pl.col("p") < 0.05)).height > 0 for of in claims]
    assert sum(found) <= 2
    alike = np.ones((4, 7, 7))  # a measure without differences says nothing
    use = of_lines(7, 0.5)._replace(measures={"flat": alike, "unknown": np.nan * alike})
    assert measures.predict(use, 9)["r2"].to_list() == pytest.approx([0, 0])


def test_students_of_the_models_are_what_measures_predict(monkeypatch: pytest.MonkeyPatch) -> None:
    taught = {
        name: [{"test_accuracy": 0.9 + 0.01 * i + seed / 1000} for seed in (-1, 1)]
        for i, name in enumerate([*"abcdef", "gone"])
    }
    monkeypatch.setattr(
        study, "students_of", lambda *of: taught if of[1:] == ("d", "vit_ti") else {}
    )
    matrix, other = rng().normal(size=(2, 8, 8))
    matrix[0, 1:7] = np.arange(6)
    config = OmegaConf.create({"dataset": {"name": "d", "student": "vit_ti"}})
    s = SimpleNamespace(config=config, names=("vit_ti", *"abcdef", "without"))
    outcomes = SimpleNamespace(correct=rng().random((8, 20)) < 0.9)
    m = SimpleNamespace(run=MagicMock(), outcomes=outcomes)
    of = [
        measures.Measure(name, Sampled(values, values[None], values[None]))
        for name, values in (("similarity", matrix), ("capa", other))
    ]
    (use,) = study.taught(s, m, of, 99)  # type: ignore[arg-type]
    assert use.predicted["values"][0] == 6 and use.predicted["r2"][0] == pytest.approx(1)
    assert study.decided(use, 2).startswith("Similarity s predicts whose students learn more")
    del taught["e"], taught["f"]
    assert not study.taught(s, m, of, 99)  # type: ignore[arg-type]


def test_measures(folder: Path) -> None:
    """A twin is its model by every measure; what is in the store is not made again, also for more
    members."""
    fast = ("measures.permutations=99", "measures.bootstrap=20")
    run = on_four("measures", folder, *fast)
    has_figures(run, "measures_scatter", "measures_correlations")
    table = pl.read_csv(run / "measures_scatter.csv")
    (twins,) = table.filter(a="test_byobnet", b="twin").to_dicts()
    (others,) = table.filter(a="test_byobnet", b="vit_ti").to_dicts()
    assert all(others[name] < twins[name] for name in study.TITLES)
    for name in study.TITLES:
        assert (table[f"{name}_low"] <= table[f"{name}_high"]).all(), name
        if name not in ("similarity", "capa"):
            assert twins[name] == pytest.approx(1, abs=2e-3), name
    first = pl.read_csv(folder / "first" / "pairs.csv").filter(a=MEMBERS[0], b=MEMBERS[1])
    assert first["same_mistake"].to_list() == pytest.approx([others["same_mistake"]])
    assert first["same_mistake_chance"].is_between(0, 1).all()
    assert others["similarity"] == pytest.approx(smoothed_score(folder))  # of all 100 images
    links = pl.read_csv(run / "measures_correlations.csv")
    assert links["models_low"].null_count() == links.height  # too few models
    assert links["noise_ceiling"].is_between(0, 1).all()
    assert set(links["permutations"]) <= {24, 0}  # 4 models; 0 where undefined
    summary = pl.read_csv(run / "measures.csv")
    assert (summary["noise"] >= 0).all()

    kept = sorted(four_store(folder).glob("digits/quick-*/measures/*/*/*.safetensors"))
    assert len(kept) == 4 * 2  # features and gradients, in one shard
    lost = next(path for path in kept if path.match("gradients-*/vit_ti/00000.safetensors"))
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in kept if path != lost}
    assert not (run / "measures_uses.csv").exists()  # too few models for that
    fifth = re.findall(r"\{name: twin.*?\}", overrides(folder)[0])[0].replace("twin", "fifth", 1)
    more = overrides(folder)[0].removesuffix("]") + f",{fifth}]"
    again = on_four("measures", folder, *fast, more)
    assert lost.is_file() and {p: p.stat().st_mtime_ns for p in before} == before
    same = pl.col("a").is_in(MEMBERS) & pl.col("b").is_in(MEMBERS)
    found = pl.read_csv(again / "measures_scatter.csv").filter(same)
    assert_frame_equal(found, table, check_row_order=False)
    uses = pl.read_csv(again / "measures_uses.csv")
    assert uses["measure"].to_list() == [*study.TITLES, "accuracy alone"]
    assert uses["p"].is_between(0.01, 1).all() and (uses["r2"] <= 1).all()
