"""What is done about members whose clean predictions look wrong: a warning, or a stop."""

from collections.abc import Iterator, Mapping, Sequence

from omegaconf import DictConfig
from rich.console import Console

from netkin.analysis.suspect import (
    BELOW_TRAINED,
    CHANCE,
    GUESSED,
    ORDERS,
    RELABELLED,
    SATURATED,
    Suspicion,
)
from netkin.errors import UserError

REMEDIES = {
    CHANCE: "Check that the weights are of this dataset and of these classes",
    BELOW_TRAINED: "Check that images and preprocessing are those of the training",
    GUESSED: "Give each member the mean, std, input_size, crop_pct and interpolation that it was "
    "trained with, even if these are the guessed ones",
    SATURATED: "Divide its logits by a constant in its forward pass, which changes no prediction, "
    "or use attack=autoattack, whose losses do not depend on their scale; more steps do not help",
}


class Suspects:
    """Takes the members that look wrong after the clean pass; a `netkin.run.Watch`.

    Attributes:
        reasons: in words, by member.
        sentences: the same with members' names and remedies, for the page.

    Raises UserError, where `on_suspect` is stop, with all of the sentences.
    """

    def __init__(self, config: DictConfig, console: Console):
        self.config, self.console = config, console
        self.reasons: dict[str, str] = {}
        self.sentences: list[str] = []

    def __call__(self, suspects: Mapping[str, Sequence[Suspicion]]) -> None:
        """Print what is wrong with each member, and what to do, or stop."""
        self.reasons = {
            name: "; ".join(suspicion.finding for suspicion in suspicions)
            for name, suspicions in suspects.items()
        }
        findings: dict[str, list[str]] = {}  # by remedy: many members may need the same
        for name, suspicions in suspects.items():
            for remedy, finding in self._remedies(suspicions):
                findings.setdefault(remedy, []).append(f"{name}: {finding}")
        self.sentences = [
            f"Suspect: {'; '.join(found)}. {remedy}." for remedy, found in findings.items()
        ]
        if self.sentences and self.config.on_suspect == "stop":
            raise UserError(
                f"{len(suspects)} suspect member{'s' * (len(suspects) > 1)}, and "
                f"on_suspect=stop: {' '.join(self.sentences)} Nothing was attacked; clean "
                "predictions are kept. on_suspect=warn goes on"
            )
        for sentence in self.sentences:
            self.console.print(sentence)

    def _remedies(self, suspicions: Sequence[Suspicion]) -> Iterator[tuple[str, str]]:
        """Pairs of a remedy and a finding."""
        for suspicion in suspicions:
            if suspicion.kind == RELABELLED:
                remedy = self._reordering(suspicion.order)
            else:
                remedy = REMEDIES[suspicion.kind]
            yield remedy, suspicion.finding

    def _reordering(self, order: str) -> str:
        """How to get the classes into the order of a member's outputs."""
        dataset = self.config.dataset
        if order in ORDERS and "class_order" in dataset and not (dataset.classes or dataset.labels):
            setting = f"dataset.class_order={order}"
        elif "class_order" in dataset:
            setting = (
                "dataset.classes=FILE, with the names of the classes in the order of the outputs"
            )
        else:
            return "Reorder the outputs of its last layer: the order of these classes is fixed"
        return f"Use {setting} (for all members: outputs in two orders cannot be compared)"
