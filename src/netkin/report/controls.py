"""What a score may be due to beside kinship: chance, and single models. Sentences, tables, figures.

The computations are in `netkin.analysis.confounders`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import ndtri

from netkin import similarity
from netkin.analysis import confounders
from netkin.analysis.summary import within_and_between
from netkin.report.figures import LARGE, heatmap_figure
from netkin.report.study import Outputs, Picture, Section
from netkin.report.text import and_more
from netkin.similarity import ALPHA, Z_95, Outcomes

FEWEST = 4
"""Models below which effects of single models are not separated from the rest."""
NOT_ABOVE = "○: not above noise"


@dataclass(frozen=True)
class Controls:
    """What the scores of N models owe to chance and to single models.

    Attributes:
        names, families: of the models.
        scores: smoothed, [N, N].
        pairs: a row a pair: a, b, asymmetry; and those of `netkin.analysis.confounders`, where
            the noise control was run.
        models: a row a model: model, noise_rate, source_strength, target_brittleness, main_effect;
            null where unknown.
        directions, main: the fits; None for fewer than 4 models.
        corrected: chance-corrected rates [N, N]; None without the noise control.
        at_chance: directions that fool no more often than noise.
    """

    names: Sequence[str]
    families: Sequence[str]
    scores: NDArray[np.float64]
    pairs: pl.DataFrame
    models: pl.DataFrame
    directions: confounders.Directions | None
    main: confounders.MainEffects | None
    corrected: NDArray[np.float64] | None
    at_chance: int

    def answer(self) -> list[str]:
        """The findings, a paragraph each."""
        return [*self._noise(), *self._single()]

    def write(self, outputs: Outputs, groups: Sequence[str]) -> None:
        """Write the heatmaps, with the base architectures or other groups of the models."""
        for name, matrix, caption in self._figures():
            table = pl.DataFrame({name: matrix[:, i] for i, name in enumerate(self.names)})
            table = table.insert_column(0, pl.Series("", self.names))
            drawn = heatmap_figure(matrix, self.names, groups, label=caption, signed=True)
            outputs.figure(name, drawn, table, caption)

    def sections(self, folder: Path) -> list[Section]:
        """The sections of a page beside the files of `write`."""
        pictures = {
            name: Picture(folder / f"{name}.png", caption) for name, _, caption in self._figures()
        }
        result = []
        if "corrected" in pictures:
            result.append(Section("Above chance", self._noise(), figures=[pictures["corrected"]]))
        if "rest" in pictures:
            columns = ["model", "source_strength", "target_brittleness", "main_effect"]
            table = self.models.select(columns).sort("target_brittleness", descending=True)
            result.append(
                Section(
                    "Strong sources, brittle targets",
                    self._single(),
                    {"Main effects (nats)": table},
                    [pictures["rest"]],
                )
            )
        return result

    def _figures(self) -> list[tuple[str, NDArray[np.float64], str]]:
        figures = []
        if self.corrected is not None:
            figures.append(("corrected", self.corrected, "chance-corrected rate (p - q) / (1 - q)"))
        if self.main is not None:
            figures.append(("rest", self.main.rest, "score without main effects (nats)"))
        return figures

    def _noise(self) -> list[str]:
        if self.corrected is None:
            return []
        rates = self.models.drop_nulls("noise_rate").sort("noise_rate", descending=True)
        worst = rates.row(0, named=True)
        total, n = self.pairs.height, len(self.names)
        below = self.pairs.filter(~pl.col("above_noise"))
        text = (
            "Sign noise of the attack's eps, which uses no gradient, fools a model on "
            f"{np.nanmean(rates['noise_rate'].to_numpy()):.1%} of its images on average, at most "
            f"{worst['noise_rate']:.1%} ({worst['model']}). "
        )
        if below.is_empty():
            text += (
                "The pair transfers more often than that."
                if total == 1
                else f"All {total:,} pairs transfer more often than that."
            )
        else:
            named = and_more([f"{a} and {b}" for a, b in below.select("a", "b").iter_rows()], 3)
            where = f"{NOT_ABOVE[0]} in the heatmap" if n <= LARGE else "above_noise in pairs.csv"
            text += (
                f"{below.height:,} of {total:,} pairs {'is' if below.height == 1 else 'are'} not "
                f"above noise ({where}): {named}. Such scores may show "
                "brittleness, not kinship."
            )
        text += (
            f" In {self.at_chance:,} of {n * (n - 1):,} directions adversarial images of another "
            "model fool the target no more often than noise."
        )
        compared = self._compared("Corrected for chance", self.corrected, "{:.0%}")
        return [f"{text} {compared}".rstrip()]

    def _single(self) -> list[str]:
        if self.main is None or self.directions is None:
            return []
        median = np.nanmedian(self.pairs["asymmetry"].cast(float).to_numpy())
        text = f"In the median pair the larger direction makes up {median:.0%} of p. "
        d = self.directions
        text += (
            f"The target explains {d.by_target:.0%} of the variance of one-sided scores, "
            f"the source {d.by_source:.0%}. Single models' main effects explain "
            f"{self.main.explained:.0%} of the variance of s. "
        )
        return [f"{text}{self._compared('Without them', self.main.rest, '{:.2f}')}".rstrip()]

    def _compared(self, what: str, other: NDArray[np.float64], unit: str) -> str:
        """What another matrix says about clusters, nearest relatives and families."""
        parts = []
        if len(self.names) >= FEWEST:
            c = confounders.change(self.scores, other)
            if c.rand is not None:
                same = (
                    "are the same"
                    if c.rand == 1
                    else f"agree with those of s to an adjusted Rand index of {c.rand:.2f}"
                )
                parts.append(f"the {c.k} clusters {same}")
            parts.append(f"{c.nearest} of {c.models} models have another nearest relative")
        means = within_and_between(self.families, other)
        if means:
            within, between = map(unit.format, means)
            parts.append(f"the mean is {within} within families and {between} between them")
        if not parts:
            return ""
        *first, last = parts
        return f"{what}, {', '.join(first)}{' and ' if first else ''}{last}."


def controls(outcomes: Outcomes, families: Sequence[str], alpha: float = ALPHA) -> Controls:
    """The controls of measured outcomes of N models.

    `alpha` is how often intervals of pairs may miss.
    """
    names, n = list(outcomes.members), len(outcomes.members)
    scores = similarity.smoothed_matrix(outcomes)
    pairs = similarity.pairs(outcomes)
    asymmetry = confounders.asymmetry(pairs["a_fools_b"].to_numpy(), pairs["b_fools_a"].to_numpy())
    table = pairs.select("a", "b", pl.Series("asymmetry", asymmetry).fill_nan(None))
    models: dict[str, object] = {"model": names}
    corrected, at_chance = None, 0
    z = Z_95 if alpha == ALPHA else float(-ndtri(alpha / 2))
    if outcomes.noise is not None:
        table = table.join(
            confounders.pair_table(outcomes, z), on=["a", "b"], maintain_order="left"
        )
        corrected = confounders.corrected_matrix(outcomes)
        at_chance = confounders.directions_at_chance(outcomes)
        models["noise_rate"] = confounders.noise_rates(outcomes)
    directions = main = None
    if n >= FEWEST:
        directions = confounders.directions(similarity.one_sided(outcomes))
        main = confounders.main_effects(scores)
        models["source_strength"] = directions.strength
        models["target_brittleness"] = directions.brittleness
        models["main_effect"] = main.effects
    rows = pl.DataFrame(models).fill_nan(None)
    return Controls(names, families, scores, table, rows, directions, main, corrected, at_chance)
