"""Ensembles: every sum against NumPy's mean, every draw against enumeration, and the study."""

from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy.stats import binomtest

from netkin.analysis import ensemble
from netkin.analysis.groups import groups
from netkin.analysis.matrix import Matrix
from netkin.errors import UserError
from netkin.similarity import resample
from tests.analysis.coverage import of_reduction
from tests.helpers import (
    MEMBERS,
    four_store,
    has_figures,
    on_four,
    overrides,
    page_text,
    smoothed_score,
)
from tests.helpers import run as command


def made_up(models: int, images: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=images)
    logits = rng.normal(size=(models, images, classes)).astype(np.float32)
    logits[:, np.arange(images), labels] += 1.5
    return logits, labels


@pytest.mark.parametrize(("images", "threads"), [(1, 1), (300, 1), (513, 3)])
def test_an_ensemble_is_the_mean_of_logits(images: int, threads: int) -> None:
    logits, labels = made_up(6, images, 7)
    chosen = [(0,), (1, 4), (0, 2, 5), (0, 1, 2, 3, 4, 5)]
    seen: list[int] = []
    found = ensemble.ensembles_correct(
        lambda block: logits[:, block], labels, chosen, threads, seen.append
    )
    for row, group in zip(found, chosen, strict=True):
        expected = logits[list(group)].astype(float).mean(axis=0).argmax(axis=1) == labels
        np.testing.assert_array_equal(row, expected)
    assert sum(seen) == images


def test_metrics_by_hand() -> None:
    """Two models that err on 1/2 and 1/4; together on 1/4: ERR = 1 - 1/4 / (3/8) = 1/3."""
    wrong = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    together = np.array([[1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    found = ensemble.metrics(wrong, [(0, 1), (1, 2)], together, np.ones((1, 4)))
    assert (found["top1_error"], found["all_wrong"]) == (0.125, 0.125)
    assert found["err"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["images_with_errors"] == 2
    assert found["err_of_one_image"] == pytest.approx(
        (1 / 1.5 + 1 / 0.5) / 2
    )  # that members misread
    nobody = ensemble.metrics(wrong[2:], [(0, 0)], together[1:], np.ones((3, 4)))
    assert np.isnan(
        [nobody[key] for key in ("err", "err_low", "err_high", "err_of_one_image")]
    ).all()


@given(st.integers(0, 60), st.integers(1, 60))
def test_the_interval_of_an_error_is_clopper_and_pearsons(k: int, n: int) -> None:
    k = min(k, n)
    theirs = binomtest(k, n).proportion_ci(0.95, method="exact")
    found = ensemble.share_interval(k, n)
    assert found == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_no_interval_is_empty_where_no_ensemble_errs() -> None:
    """Two models err on an image each, together on none: neither 0 to 0 nor 1 to 1."""
    wrong = np.zeros((2, 500), dtype=bool)
    wrong[0, 0] = wrong[1, 1] = True
    counts = resample(500, 200)
    found = ensemble.metrics(wrong, [(0, 1)], np.zeros((1, 500), dtype=bool), counts)
    assert found["top1_error_low"] == 0
    assert found["top1_error_high"] == pytest.approx(1 - 0.025 ** (1 / 500))
    assert -1 <= found["err_low"] < 0 and found["err_high"] == 1 and found["err"] == 1
    assert found["err_of_one_image"] == 1  # more than any effect


def test_the_interval_of_few_errors_covers_and_the_bootstrap_does_not() -> None:
    """All values: experiments/results/statistics.md."""
    bootstrap, reported = of_reduction(3, 200, repetitions=150)
    assert bootstrap < 0.9 and reported >= 0.93


def test_a_draw_of_images_is_a_run_on_those_images() -> None:
    logits, labels = made_up(5, 60, 4)
    chosen = [(0, 1), (2, 3), (1, 4)]
    counts = resample(60, 8, seed=1)
    wrong = ~ensemble.ensembles_correct(lambda b: logits[:, b], labels, [(i,) for i in range(5)])
    joint = ~ensemble.ensembles_correct(lambda b: logits[:, b], labels, chosen)
    one_by_one = ensemble.reduction_draws(wrong, chosen, joint, counts)
    found = ensemble.metrics(wrong, chosen, joint, counts)
    means = []
    for i, count in enumerate(counts.astype(int)):
        picked = np.repeat(np.arange(60), count)
        same = ensemble.metrics(wrong[:, picked], chosen, joint[:, picked], np.ones((1, 60)))
        means.append((same["top1_error"], same["err"]))
        assert one_by_one[i].mean() == pytest.approx(same["err"], rel=1e-4, abs=1e-6)
    assert min(joint.any(axis=0).sum(), found["images_with_errors"]) >= ensemble.FEW
    for name, drawn in zip(("top1_error", "err"), np.transpose(means), strict=True):
        ends = found[f"{name}_low"], found[f"{name}_high"]
        np.testing.assert_allclose(ends, np.quantile(drawn, (0.025, 0.975)), rtol=1e-4)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=8), st.integers(1, 4), st.integers(1, 4))
def test_all_ensembles_of_k_clusters_are_found(labels: list[int], n: int, k: int) -> None:
    every = [
        group
        for group in combinations(range(len(labels)), n)
        if len({labels[i] for i in group}) == k
    ]
    assert ensemble.sample(labels, n, k, samples=10**6) == (every, True)
    few, whole = ensemble.sample(labels, n, k, samples=3)
    assert set(few) <= set(every) and len(few) == min(3, len(every)) == len(set(few))
    assert whole == (len(every) <= 3)


def test_draws_are_even_and_seeded() -> None:
    labels = [0, 0, 0, 0, 0, 1, 2]  # by far the most pairs of two clusters take one of the five
    every, _ = ensemble.sample(labels, 2, 2, samples=1000)
    times = dict.fromkeys(every, 0)
    for seed in range(1100):
        (one,), _ = ensemble.sample(labels, 2, 2, samples=1, seed=seed)
        times[one] += 1
    assert min(times.values()) > 60 and max(times.values()) < 145  # 100 each; sd 9.5
    assert ensemble.sample(labels, 2, 2, 5, seed=7) == ensemble.sample(labels, 2, 2, 5, seed=7)


def test_groups_by_family_and_by_pattern() -> None:
    names, families = ["a_1", "a_2", "b"], ["A", "A", "B"]
    assert groups(None, names, families) == {"A": [0, 1]}
    assert groups({"mine": ["b", "a_*"]}, names, families) == {"mine": [0, 1, 2]}
    for chosen, expected in (
        ({"x": ["c*"]}, "group x: no model is named 'c\\*'"),
        ({"x": ["b"]}, "group x has one model, b; expected two"),
        ({"x": 3}, "group x must be a list"),
    ):
        with pytest.raises(UserError, match=expected):
            groups(chosen, names, families)


def test_ensemble(folder: Path) -> None:
    """The study's numbers from the logits in the store, by NumPy."""
    run = on_four("ensemble", folder)
    has_figures(run, "ensemble_pairs", "ensemble_clusters", "ensemble_groups")
    (subset,) = (four_store(folder) / "digits").glob("quick-*")
    labels = np.array(pl.read_json(subset / "manifest.json")["labels"][0])
    files = [subset / "clean" / name / "logits.safetensors" for name in MEMBERS]
    logits = [load_file(file)["logits"] for file in files]
    table = pl.read_csv(run / "ensemble_pairs.csv")
    assert table.height == 6
    (row,) = table.filter(a="vit_ti", b="test_byobnet").to_dicts()
    error = np.mean((logits[0] + logits[1]).argmax(1) != labels)
    alone = np.mean([(x.argmax(1) != labels).mean() for x in logits[:2]])
    assert row["top1_error"] == pytest.approx(error)
    assert row["err"] == pytest.approx(1 - error / alone)
    assert row["similarity"] == pytest.approx(smoothed_score(folder))
    (twins,) = table.filter(a="twin", b="test_byobnet").to_dicts()
    assert twins["err"] == pytest.approx(0)  # a model and itself gain nothing
    assert ((table["err_low"] <= table["err"]) & (table["err"] <= table["err_high"])).all()
    said = page_text(run / "report.html")
    assert "4 models are too few for a verdict" in said and "anything beyond accuracy?" in said
    assert "Mantel p" in said and "If pairs were independent" in said
    # A matrix of someone's own, with the members' logits.
    mine = np.array([[9, 1, 2, 3], [1, 9, 4, 5], [2, 4, 9, 6], [3, 5, 6, 9.0]])
    Matrix(MEMBERS, mine).table().write_csv(folder / "four.csv")
    read = [word for word in overrides(folder) if not word.startswith(("recipe", "attack"))]
    given = f"similarity={folder / 'four.csv'}"
    run = command("ensemble", folder / "own", [*read, given, "ensemble.samples=3"])
    assert sorted(pl.read_csv(run / "ensemble_pairs.csv")["similarity"]) == [1, 2, 3, 4, 5, 6]


def test_which_classifier_is_better_on_the_same_images() -> None:
    """McNemar's exact p, and how often it errs where both err equally often."""
    wrong, other = np.array([[1, 0, 0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1, 1, 1]], bool)
    won, lost, p = ensemble.only_one_wrong(wrong, other)
    assert (won, lost) == (6, 1) and p == pytest.approx(2 * (1 + 7) / 2**7)
    assert ensemble.only_one_wrong(other, other) == (0, 0, 1.0)
    rng = np.random.default_rng(0)
    both = [ensemble.only_one_wrong(*(rng.random((2, 500)) < 0.02))[2] for _ in range(400)]
    assert np.mean(np.array(both) < 0.05) <= 0.05
