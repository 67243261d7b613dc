"""Classifiers that are run otherwise than they were trained, and those that only look so."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from netkin.analysis.suspect import (
    BELOW_TRAINED,
    CHANCE,
    FAR,
    GUESSED,
    RELABELLED,
    SATURATED,
    SHIFTED,
    Accuracy,
    best_relabelling,
    chance_rate,
    falls_short,
    known_orders,
    near_chance,
    relabelled_correct,
    saturation,
    suspicions,
)

COUNTS = arrays(np.int64, (4, 4), elements=st.integers(0, 9))


def predicted(
    labels: NDArray[np.intp], accuracy: float, classes: int, seed: int = 0
) -> NDArray[np.intp]:
    """Predictions of an accuracy, the errors spread evenly over the other classes."""
    rng = np.random.default_rng(seed)
    wrong = (labels + rng.integers(1, classes, len(labels))) % classes
    return np.where(rng.random(len(labels)) < accuracy, labels, wrong)


def kinds(*arguments: object, **keywords: object) -> list[str]:
    return [each.kind for each in suspicions(*arguments, **keywords)]  # type: ignore[arg-type]


NAMES = [str(k) for k in range(12)]
TEXT = sorted(NAMES)
LABELS = np.repeat(np.arange(12), 10)


@given(COUNTS)
@settings(max_examples=50)
def test_the_best_relabelling_is_the_best_permutation(counts: NDArray[np.int64]) -> None:
    cells = np.repeat(np.arange(16), counts.ravel())
    outputs = best_relabelling(cells // 4, cells % 4, 4)
    assert sorted(outputs) == [0, 1, 2, 3]
    scores = {p: counts[np.arange(4), p].sum() for p in permutations(range(4))}
    assert counts[np.arange(4), outputs].sum() == max(scores.values())
    moved = {p: sum(k != o for k, o in enumerate(p)) for p in scores}
    best = min(moved[p] for p in scores if scores[p] == max(scores.values()))
    assert moved[tuple(outputs)] == best


@given(st.permutations(range(5)), st.integers(2, 9))
@settings(max_examples=50)
def test_a_right_classifier_in_any_order_is_found_right(order: list[int], each: int) -> None:
    labels = np.repeat(np.arange(5), each)
    predictions = np.array(order)[labels]
    assert relabelled_correct(labels, predictions, 5).all()
    assert (best_relabelling(labels, predictions, 5) == order).all()


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_no_order_is_found_in_guesses_nor_in_plain_errors(seed: int) -> None:
    """A permutation fitted to guesses on few images a class is right on many of them; not here."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(50), 4)
    guesses = rng.integers(0, 50, len(labels))
    names = [f"class {k}" for k in range(50)]
    fitted = best_relabelling(labels, guesses, 50)
    assert (fitted[labels] == guesses).mean() > 0.15
    assert RELABELLED not in kinds(labels, guesses, names)
    for accuracy in (0.2, 0.5, 0.9):
        assert kinds(labels, predicted(labels, accuracy, 50, seed), names) == []


def test_untrained_networks_are_near_chance_not_in_another_order() -> None:
    """Their outputs depend on the class, so a relabelling gains: 20% to 40% of images are right."""
    labels, classes = np.repeat(np.arange(10), 30), [f"class {k}" for k in range(10)]
    rng = np.random.default_rng(0)
    for _ in range(50):
        rates = rng.dirichlet(np.full(10, 0.3), size=10)  # of predictions, by class
        predictions = np.array([rng.choice(10, p=rates[label]) for label in labels])
        if not near_chance(int((predictions == labels).sum()), 300, 0.1):
            continue
        after = relabelled_correct(labels, predictions, 10).mean()
        (found,) = suspicions(labels, predictions, classes)
        assert found.kind == (RELABELLED if after >= 0.55 else CHANCE)


@pytest.mark.parametrize(("classes", "other"), [(TEXT, "natural"), (NAMES, "text")])
@pytest.mark.parametrize("each", [1, 2, 10])
def test_another_order_of_numbers_is_named(classes: list[str], other: str, each: int) -> None:
    """Even of one image a class: a known order is not fitted."""
    labels = np.repeat(np.arange(12), each)
    outputs = NAMES if classes is TEXT else TEXT
    predictions = np.array([outputs.index(classes[k]) for k in labels])
    (found,) = suspicions(labels, predictions, classes)
    assert (found.kind, found.order) == (RELABELLED, other)
    assert f"100.0% with its outputs in the {other} order of the classes" in found.finding
    assert ("predicts 10 as 8, 11 as 9, 2 as 10, ..." in found.finding) == (classes is TEXT)


def test_labels_that_are_counted_from_1_and_any_other_order() -> None:
    shifted = (predicted(LABELS, 0.8, 12) + 1) % 12
    (found,) = suspicions(LABELS, shifted, NAMES)
    assert (found.kind, found.order) == (RELABELLED, SHIFTED)
    assert "in an order that is shifted by one" in found.finding
    order = np.random.default_rng(0).permutation(12)
    (found,) = suspicions(LABELS, order[predicted(LABELS, 0.8, 12)], NAMES)
    assert (found.kind, found.order) == (RELABELLED, "")
    assert "in another order of the classes" in found.finding
    swapped = np.array([1, 0])[predicted(LABELS[:20], 0.9, 2)]
    assert kinds(LABELS[:20], swapped, ["ant", "bee"]) == [RELABELLED]


def test_wordnet_ids_are_named_in_words() -> None:
    labels = np.repeat(np.arange(2), 20)
    (found,) = suspicions(labels, 1 - labels, ["n01440764", "n01443537"])
    assert "it predicts tench as goldfish, goldfish as tench" in found.finding


@given(st.integers(1, 400), st.integers(2, 1000), st.data())
@settings(max_examples=100)
def test_near_chance(images: int, classes: int, data: st.DataObject) -> None:
    """At chance and below it always; then up to some number of images; never at half of the way."""
    correct = data.draw(st.integers(0, images - 1))
    chance = 1 / classes
    assert near_chance(int(images * chance), images, chance)
    assert near_chance(correct, images, chance) or not near_chance(correct + 1, images, chance)
    assert not near_chance(images, images, chance)


def test_chance_is_that_of_the_most_frequent_class() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    assert chance_rate(labels, 2) == 0.9
    assert kinds(labels, np.zeros(100, dtype=int), ["a", "b"]) == [CHANCE]
    assert kinds(labels, labels, ["a", "b"]) == []
    assert near_chance(100, 50_000, 0.001)  # far above guessing by a test, and yet near it


def test_below_the_trained_accuracy_beyond_the_sampling_error() -> None:
    assert falls_short(Accuracy(0.6, 100), Accuracy(0.9, 500))
    assert not falls_short(Accuracy(0.85, 100), Accuracy(0.9, 500))
    assert not falls_short(Accuracy(0.4, 10), Accuracy(0.7, 10))
    assert not falls_short(Accuracy(0.95, 1000), Accuracy(0.5, 1000))
    predictions = predicted(LABELS, 0.5, 12)
    (found,) = suspicions(LABELS, predictions, NAMES, Accuracy(0.9, 500))
    assert found.kind == BELOW_TRAINED and "its training recorded 90.0% on 500" in found.finding
    guesses = predicted(LABELS, 1 / 12, 12)
    assert kinds(LABELS, guesses, NAMES, Accuracy(0.9, 500), True) == [
        CHANCE,
        BELOW_TRAINED,
        GUESSED,
    ]


def test_known_orders_leave_out_the_classes_own() -> None:
    assert [*known_orders(["a", "b", "c"])] == [SHIFTED, f"{SHIFTED} back"]
    assert "natural" in known_orders(TEXT) and "text" not in known_orders(TEXT)
    assert known_orders(["a", "b"]) == {}


def test_a_loss_without_a_gradient() -> None:
    """In float32: the gradient of the cross-entropy is exactly 0 from `FAR` nats on, not before."""
    for apart, expected in ((FAR + 1, 1.0), (FAR - 10, 0.0)):
        logits = torch.tensor([[0.0, apart, -3.0]], requires_grad=True)
        cross_entropy(logits, torch.tensor([1])).backward()
        assert logits.grad is not None and bool(logits.grad.any()) != bool(expected)
        assert saturation(logits.detach().numpy()) == expected
    for apart, kinds in ((2 * FAR, [SATURATED]), (FAR / 2, [])):
        logits = (apart * np.eye(len(NAMES))[LABELS]).astype(np.float32)
        assert [s.kind for s in suspicions(LABELS, LABELS, NAMES, logits=logits)] == kinds
