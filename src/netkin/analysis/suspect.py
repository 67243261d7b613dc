"""Classifiers whose clean predictions look wrong, found before anything is attacked.

A wrong order of classes, preprocessing that is not the training's, or weights of another task give
scores like any others. What gives them away is the accuracy on the clean images. It is compared
with chance, with that of the training, and with the accuracy under the best relabelling of the
outputs; where it is low, with the accuracy under the usual normalisations. It is not compared with
published accuracies: timm's package has no table of them.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom

from netkin.data.classes import ORDERS, class_words, in_order

RELABELLED, CHANCE, BELOW_TRAINED, GUESSED = "relabelled", "chance", "below trained", "guessed"
"""Kinds of suspicions."""
SATURATED, PROBABILITIES, FLAT = "saturated", "probabilities", "flat"
"""Kinds that leave predictions right, and attacks without a gradient or with a small one."""
RANDOM, BATCH = "random", "batch"
"""Kinds of logits that depend on more than the image: on chance, or on the other images."""
NORMALISED, REVERSED = "normalised", "reversed"
"""Kinds of inputs with which a classifier is certainly better: another normalisation, with the
channels in the reverse order or not."""
REMEDIES = {
    NORMALISED: "Set its mean and std to these, or to those of its training",
    REVERSED: "Reverse the channels in its forward pass (x.flip(1)), after its mean and std",
    CHANCE: "Check that the weights are of this dataset and of these classes",
    BELOW_TRAINED: "Check that images and preprocessing are those of the training",
    GUESSED: "Give each member the mean, std, input_size, crop_pct and interpolation that it was "
    "trained with, even if these are the guessed ones",
    SATURATED: "Divide its logits by a constant in its forward pass, which changes no prediction, "
    "or use AutoAttack, whose losses do not depend on their scale; more steps do not help",
    PROBABILITIES: "Return logits: leave the softmax at its end out",
    FLAT: "Give what rounds, thresholds or saturates in its forward pass (a softmax or sigmoid "
    "at its end can be left out) a gradient, such as that of the identity; more steps do not help",
    RANDOM: "Switch dropout and noise off in eval mode, or fix their random numbers: its scores "
    "are one draw of many, and a store cannot notice changes of its code",
    BATCH: "Let its batch normalisation use the stored statistics in eval mode: its accuracy and "
    "its scores change with batch_size",
}
"""What to do about a kind, with a member's name before it or after it."""
FAR = 104.0
"""Nats between the two largest logits above which float32 holds no gradient of the cross-entropy:
exp(-104) is 0."""
SHIFTED = "shifted"  # an order of classes: each class one further, or one back
LEVEL = 0.01  # of the binomial test against chance
NEAR = 0.05
"""An accuracy this part of the way from chance to 1 is near chance, however many images there
are."""
KNOWN = 0.25
"""The part of that way that one of the known orders has to reach; any other order has to reach half
of it."""
GAIN = 0.1  # accuracy that a relabelling has to gain
SHORTFALL = 0.05
"""Accuracy that has to be missing from that of the training, besides the sampling error."""
ERRORS = 3.0  # standard errors that count as sampling error
MOST_CLASSES = 2000
"""Of more classes, only known orders are tried: a search takes minutes and gigabytes."""
EXAMPLES = 3  # classes that a finding names
WEAK = 0.5
"""The accuracy below which other inputs are tried, whatever that of the others: all can be given
the same wrong normalisation."""
TRIED = 100
"""Images that they are tried on, at most."""


class Accuracy(NamedTuple):
    """An accuracy in [0, 1], and on how many images."""

    rate: float
    images: int


class Input(NamedTuple):
    """How a network takes pixels in [0, 1]: less a mean and divided by a standard deviation, each
    in the order red, green, blue; then maybe in the reverse order. A name of "" is its own."""

    name: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    reverse: bool = False

    @property
    def words(self) -> str:
        """What gives another accuracy, in the plural."""
        mean, std = (", ".join(f"{x:.6g}" for x in dict.fromkeys(v)) for v in self[1:3])
        usual = f"the mean ({mean}) and std ({std}) of {self.name}" if self.name else ""
        flipped = "channels in reverse order (blue, green, red)" if self.reverse else ""
        return " and ".join(filter(None, (usual, flipped)))


NORMALISATIONS = (
    Input("ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Input("pixels in [-1, 1]", (0.5,) * 3, (0.5,) * 3),
    Input("pixels in [0, 1]", (0.0,) * 3, (1.0,) * 3),
    Input("pixels of 0 to 255", (0.0,) * 3, (1 / 255,) * 3),
    Input("CLIP", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    Input("CIFAR-10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
)
GRAY = (*NORMALISATIONS[1:4], Input("MNIST", (0.1307,), (0.3081,)))
"""Those of networks of gray images."""


class Suspicion(NamedTuple):
    """A reason to doubt that a classifier is run as it was trained: its kind (RELABELLED, or one of
    `REMEDIES`), the finding in words, to follow the classifier's name and a colon, and of
    RELABELLED the order of the outputs: one of `netkin.data.classes.ORDERS`, SHIFTED, or empty
    where it is none of them."""

    kind: str
    finding: str
    order: str = ""


def suspicions(
    labels: NDArray[np.intp],
    predictions: NDArray[np.intp],
    classes: Sequence[str],
    trained: Accuracy | None = None,
    guessed: bool = False,
    logits: NDArray[np.float32] | None = None,
    notes: Mapping[str, str] | None = None,
    tried: NDArray[np.intp] | None = None,
    inputs: Sequence[Input] = (),
) -> list[Suspicion]:
    """The reasons to doubt a classifier, empty where there are none.

    Another order of classes, or another input, explains a low accuracy, which is then no reason of
    its own.

    Args:
        labels, predictions: of I images, indices of the classes.
        classes: K names, in the order of the labels.
        trained: what its training recorded on test images of this dataset, if it did.
        guessed: whether its preprocessing is unknown.
        logits: [I, K], for the same images.
        notes: of `netkin.passes.predict.examine`.
        tried: [inputs, n], what it predicts with other `inputs` of the images of `tried_images`.
    """
    accuracy, images = float(np.mean(predictions == labels)), len(labels)
    percent = f"its accuracy is {accuracy:.1%} on {images} images"
    relabelling = _relabelling(labels, predictions, classes, percent)
    explained = relabelling
    if relabelling is None and tried is not None:
        explained = _other_input(labels, predictions, tried, inputs, percent)
    result = [] if explained is None else [explained]
    if explained is None:
        chance = chance_rate(labels, len(classes))
        if near_chance(round(accuracy * images), images, chance):
            result.append(Suspicion(CHANCE, f"{percent}, near chance ({chance:.1%})"))
        if trained is not None and falls_short(Accuracy(accuracy, images), trained):
            finding = f"its training recorded {trained.rate:.1%} on {trained.images}"
            finding = finding if result else f"{percent}, but {finding}"
            result.append(Suspicion(BELOW_TRAINED, finding))
    if guessed:
        finding = "its preprocessing is unknown, and mean = std = 0.5 is a guess"
        result.append(Suspicion(GUESSED, finding))
    unsteady, flat = (notes or {}).get("unsteady"), float((notes or {}).get("flat", 0))
    if unsteady == RANDOM:
        finding = "its logits for the same images differ from one evaluation to the next"
        result.append(Suspicion(RANDOM, finding))
    elif unsteady == BATCH:
        result.append(Suspicion(BATCH, "its logits for an image depend on the others of the batch"))
    saturated = 0.0 if logits is None else saturation(logits)
    if logits is not None and are_probabilities(logits):
        finding = "its outputs are probabilities (not negative, with a sum of 1), not logits"
        result.append(Suspicion(PROBABILITIES, finding))
    elif saturated > 0.5:
        finding = (
            f"its loss saturates: on {saturated:.0%} of its images the two largest logits differ "
            f"by more than {FAR:.0f}, where the gradient of the cross-entropy is 0"
        )
        result.append(Suspicion(SATURATED, finding))
    elif flat > 0.5:
        finding = f"the gradient of its loss is 0 in every pixel, on {flat:.0%} of the images tried"
        result.append(Suspicion(FLAT, finding))
    return result


def cautions(
    suspects: Mapping[str, Sequence[Suspicion]], remedy: Callable[[Suspicion], str]
) -> list[str]:
    """What looks wrong with which classifiers, and what to do: a paragraph a remedy, since many may
    need the same."""
    findings = defaultdict[str, list[str]](list)
    for name, suspicions in suspects.items():
        for suspicion in suspicions:
            findings[remedy(suspicion)].append(f"{name}: {suspicion.finding}")
    return [f"Suspect: {'; '.join(found)}. {todo}." for todo, found in findings.items()]


def to_try(labels: NDArray[np.intp], accuracies: Mapping[str, float], classes: int) -> list[str]:
    """The names of classifiers that other inputs are tried on: those near chance, and those with an
    accuracy in [0, 1] below `WEAK`."""
    images, chance = len(labels), chance_rate(labels, classes)
    return [
        name
        for name, rate in accuracies.items()
        if rate < WEAK or near_chance(round(rate * images), images, chance)
    ]


def other_inputs(mean: Sequence[float], std: Sequence[float]) -> list[Input]:
    """The usual inputs besides that with a mean and std, of one or three channels."""
    channels, own = len(mean), (tuple(mean), tuple(std))
    usual = [
        i._replace(mean=i.mean[:channels], std=i.std[:channels])
        for i in (GRAY if channels == 1 else NORMALISATIONS)
    ]
    others = [i for i in usual if not np.allclose(i[1:3], own, rtol=0.01)]
    if channels == 1:
        return others
    return [*others, *(i._replace(reverse=True) for i in (Input("", *own), *others))]


def tried_images(images: int) -> NDArray[np.intp]:
    """The positions of the images that other inputs are tried on, evenly spread: classes may be
    sorted."""
    return np.unique(np.linspace(0, images - 1, min(images, TRIED)).astype(np.intp))


def _other_input(
    labels: NDArray[np.intp],
    predictions: NDArray[np.intp],
    tried: NDArray[np.intp],
    inputs: Sequence[Input],
    percent: str,
) -> Suspicion | None:
    """A suspicion where a classifier is certainly better with one of some inputs."""
    at = tried_images(len(labels))
    before, after = predictions[at] == labels[at], tried == labels[at]
    best = int(after.sum(axis=1).argmax())
    if not _better(before, after[best], LEVEL / len(inputs)):
        return None
    rates = f"{after[best].mean():.1%} instead of {before.mean():.1%} on {len(at)} of them"
    kind = REVERSED if inputs[best].reverse else NORMALISED
    return Suspicion(kind, f"{percent}, but {inputs[best].words} give {rates}")


def _better(before: NDArray[np.bool_], after: NDArray[np.bool_], level: float = LEVEL) -> bool:
    """Whether more images are correct after than before, by `GAIN` and not by luck."""
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    enough = gained - lost >= GAIN * len(before)
    return enough and bool(binom.sf(gained - 1, gained + lost, 0.5) <= level)


def are_probabilities(logits: NDArray[np.float32]) -> bool:
    """Whether outputs [I, K] are probabilities instead of logits."""
    return bool((logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-3))


def saturation(logits: NDArray[np.float32]) -> float:
    """The share of images whose two largest logits, of [I, K], are more than `FAR` apart."""
    if logits.shape[1] < 2:
        return 0.0
    second, first = np.partition(logits, -2, axis=1)[:, -2:].T
    return float((first - second > FAR).mean())


def chance_rate(labels: NDArray[np.intp], classes: int) -> float:
    """The accuracy without looking at images: 1 / classes, or that of the most frequent class."""
    return max(1 / classes, float(np.bincount(labels).max() / len(labels)))


def near_chance(correct: int, images: int, chance: float) -> bool:
    """Whether an accuracy is that of guessing: where guessing reaches it with a probability above
    `LEVEL`, or where it lies within `NEAR` of the way from chance to 1. Above half of that way it
    never is: of few images, all correct ones can be luck."""
    near = not far_from_chance(correct / images, chance, NEAR)
    likely = near or bool(binom.sf(correct - 1, images, chance) > LEVEL)
    return likely and not far_from_chance(correct / images, chance)


def far_from_chance(accuracy: float, chance: float, part: float = 0.5) -> bool:
    """Whether an accuracy in [0, 1] lies at or above this part of the way from chance to 1."""
    return accuracy >= chance + part * (1 - chance)


def falls_short(measured: Accuracy, trained: Accuracy) -> bool:
    """Whether an accuracy is below another by more than `SHORTFALL` and the sampling error."""
    total = measured.images + trained.images
    rate = (measured.rate * measured.images + trained.rate * trained.images) / total
    error = np.sqrt(rate * (1 - rate) * (1 / measured.images + 1 / trained.images))
    return trained.rate - measured.rate > max(SHORTFALL, ERRORS * error)


def best_relabelling(
    labels: NDArray[np.intp], predictions: NDArray[np.intp], classes: int
) -> NDArray[np.intp]:
    """The output that stands for each class, [K], such that most images are classified correctly.

    Of several, one that leaves most classes where they are.
    """
    counts = np.bincount(labels * classes + predictions, minlength=classes**2)
    counts = counts.reshape(classes, classes)  # by class, and by prediction
    doubled = counts * (classes + 1) + np.eye(classes, dtype=np.int64)
    return linear_sum_assignment(doubled, maximize=True)[1]


def relabelled_correct(
    labels: NDArray[np.intp], predictions: NDArray[np.intp], classes: int
) -> NDArray[np.bool_]:
    """Which images are classified correctly by relabelled outputs, [I].

    The relabelling of each half of a class's images is the best one of the other half, so that
    the result is not better than chance for outputs that have nothing to do with the classes.
    """
    order = np.argsort(labels, kind="stable")
    rank = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    halves = np.zeros(len(labels), dtype=bool)
    halves[order] = rank % 2 == 1  # every other image of each class
    correct = np.zeros(len(labels), dtype=bool)
    for half in (halves, ~halves):
        outputs = best_relabelling(labels[~half], predictions[~half], classes)
        correct[half] = outputs[labels[half]] == predictions[half]
    return correct


def known_orders(classes: Sequence[str]) -> dict[str, NDArray[np.intp]]:
    """The output of each class, [K], of classifiers with their classes in another order.

    The orders are `netkin.data.classes.ORDERS`, and SHIFTED: by one, as labels are that are counted
    from 1. Those that are the classes' own order are left out.
    """
    own, orders = np.arange(len(classes)), {}
    for order in ORDERS:
        index = {name: k for k, name in enumerate(in_order(classes, order))}
        orders[order] = np.array([index[name] for name in classes])
    if len(classes) > 2:
        orders |= {SHIFTED: np.roll(own, -1), f"{SHIFTED} back": np.roll(own, 1)}
    return {order: outputs for order, outputs in orders.items() if (outputs != own).any()}


def _relabelling(
    labels: NDArray[np.intp], predictions: NDArray[np.intp], classes: Sequence[str], percent: str
) -> Suspicion | None:
    """A suspicion where outputs are those of the same classes in another order.

    The order has to be right far above chance, and further if it is none of the known ones: of a
    network that was never trained, the best relabelling is right on up to 40% of images.
    """
    n, chance = len(classes), chance_rate(labels, len(classes))
    before = predictions == labels
    known = known_orders(classes).items()
    tries = [(outputs[labels] == predictions, outputs, order) for order, outputs in known]
    if n <= MOST_CLASSES:
        after = relabelled_correct(labels, predictions, n)
        tries.append((after, best_relabelling(labels, predictions, n), ""))
    far = [t for t in tries if far_from_chance(t[0].mean(), chance, KNOWN if t[2] else 0.5)]
    if not far:
        return None
    after, outputs, order = max(far, key=lambda t: t[0].mean() + SHORTFALL * bool(t[2]))
    if not _better(before, after):
        return None
    named = class_words(classes)
    moved = [k for k in np.unique(labels) if outputs[k] != k]
    pairs = ", ".join(f"{named[k]} as {named[outputs[k]]}" for k in moved[:EXAMPLES])
    more = ", ..." if len(moved) > EXAMPLES else ""
    other = (
        f"the {order} order of the classes" if order in ORDERS else "another order of the classes"
    )
    if order.startswith(SHIFTED):  # one too high, such as of labels that are counted from 1
        other = f"an order that is {order} by one class"
    right = f"{percent}, but {after.mean():.1%} with its outputs in {other}"
    finding = f"{right}: it predicts {pairs}{more}"
    return Suspicion(RELABELLED, finding, order.removesuffix(" back"))
