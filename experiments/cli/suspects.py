"""Models whose clean predictions look wrong: what is printed of them, and where a run stops."""

from collections.abc import Mapping, Sequence

from omegaconf import DictConfig
from rich.console import Console

from netkin.analysis.suspect import ORDERS, REMEDIES, Suspicion
from netkin.errors import UserError


class Suspects:
    """Takes the members that look wrong after the clean pass; a `netkin.run.Watch`.

    Attributes:
        reasons: in words, by member.
        sentences: what is wrong with which members, and what to do, for the page.

    Raises UserError, where `on_suspect` is stop, with all of the sentences.
    """

    def __init__(self, config: DictConfig, console: Console):
        self.config, self.console = config, console
        self.reasons: dict[str, str] = {}
        self.sentences: list[str] = []

    def __call__(self, suspects: Mapping[str, Sequence[Suspicion]]) -> None:
        """Print what is wrong with each member, and what to do, or stop."""
        self.reasons = {n: "; ".join(s.finding for s in found) for n, found in suspects.items()}
        findings: dict[str, list[str]] = {}  # by remedy: many members may need the same
        for name, suspicions in suspects.items():
            for suspicion in suspicions:
                remedy = REMEDIES.get(suspicion.kind) or self._reordering(suspicion.order)
                findings.setdefault(remedy, []).append(f"{name}: {suspicion.finding}")
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
