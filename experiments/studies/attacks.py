"""Do scores depend on the attack, or on having both directions? (Appendix G; Fig. G.1, G.2.)

Compares two matrices over the same models: by two attacks, from two files, or the score and its
one-sided approximation. Writes attacks (all comparisons as PNG, PDF, SVG and CSV),
correlations.csv and report.html.

On the 12 digits members (500 images): PGD-50 and PGD-10 r = 0.98, two-sided and one-sided r = 0.60
(66 pairs, 132 directions; both Mantel p <= 0.0001).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig, ListConfig

from experiments.cli.attacks import attack_specs
from experiments.cli.finish import terminal
from experiments.cli.members import build_members
from experiments.cli.runs import matrix_name
from experiments.cli.setting import build_settings
from experiments.cli.study import Measured, Study, study
from experiments.cli.values import positive_int
from netkin.analysis import matrix, noise, statistics
from netkin.analysis.noise import OverImages, Sampled
from netkin.analysis.statistics import FEWEST, associate, pearson, trend
from netkin.errors import UserError, and_more, near
from netkin.report.plots import scatter
from netkin.report.study import Section
from netkin.report.style import panels, style
from netkin.run import check_sources
from netkin.similarity import Outcomes
from netkin.zoo.member import Member

ONE_SIDED = "one-sided"
ALIKE = 0.9
"""Pearson's r from which two definitions give nearly the same scores."""


@dataclass(frozen=True)
class Definition:
    """One way to score pairs.

    Attributes:
        name: such as "pgd".
        scores: [N, N], symmetric or one-sided ([a, b]: b on a's images); NaN where not measured.
        sampled: on other images, drawn in the same way for all definitions; None for a file.
    """

    name: str
    scores: NDArray[np.float64]
    sampled: Sampled | None = None


Comparison = tuple[Definition, Definition]


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    positive_int(config.permutations, "permutations")
    if config.similarity is not None and config.other is None:
        raise UserError(
            "similarity=path.csv names one matrix; name the other one with other=path.csv"
        )
    if config.similarity is not None or config.other is not None or config.one_sided:
        with study(config) as s:
            compare(s, *two(s))
        return
    specs = attack_specs(config)
    members = build_members(config)
    sources = chosen_sources(config, members)
    for i, (_, spec) in enumerate(specs):
        some = None if i == 0 or sources is None else [m.name for m in sources]
        settings = build_settings(config, terminal(), lambda _: None, members, spec)
        check_sources(replace(settings, sources=some))
    label, spec = specs[0]
    with study(config, spec) as s:
        assert s.measured is not None
        measured = [(label, s.measured)]
        for label, spec in specs[1:]:
            r = s.measured.run.under(attack=spec)
            some = None if sources is None else [m.name for m in sources]
            r = replace(r, settings=replace(r.settings, sources=some, watch=None))
            measured.append((label, Measured(r, r.measure(), s.measured.suspects)))
        definitions = [definition(s, label, m, sources) for label, m in measured]
        white_box(s, measured, sources)
        compare(s, s.names, [(definitions[0], other) for other in definitions[1:]], sources)


def two(s: Study) -> tuple[tuple[str, ...], list[Comparison]]:
    """The names of the models, and what to compare: two files, or both with one direction."""
    config, names = s.config, s.names
    title = "two-sided" if s.measured else matrix_name(config)
    if config.other is None:
        assert s.measured is not None
        there = one_direction(config, ONE_SIDED, s.measured.outcomes)
        # The two-sided score contains the one-sided one; the other direction does not.
        back = Definition("the other direction", there.scores.T, _turned(there.sampled))
        return names, [(definition(s, title, s.measured, None), there), (there, back)]
    theirs = matrix.read(config.other, bool(config.symmetrise), bool(config.one_sided))
    common = tuple(name for name in names if name in theirs.names)
    if len(common) < 3:
        raise UserError(
            f"{title} and {config.other} share {len(common)} models, expected 3 or more "
            f"({and_more(names, 3)}; {and_more(theirs.names, 3)})"
        )
    ours = Definition(title, s.matrix.of(common).scores)
    return common, [(ours, Definition(str(config.other), theirs.of(common).scores))]


def _turned(sampled: Sampled | None) -> Sampled | None:
    if sampled is None:
        return None
    parts = (sampled.values, sampled.draws, sampled.halves)
    return Sampled(*(part.swapaxes(-1, -2) for part in parts))


def chosen_sources(config: DictConfig, members: list[Member]) -> list[Member] | None:
    """The members that the other attacks are run on; None for all."""
    if config.sources is None:
        return None
    names = config.sources
    by_name = {member.name: member for member in members}
    if not isinstance(names, ListConfig) or not names:
        raise UserError(f"sources must be a list of members such as [vit_s], got {names}")
    for name in names:
        if name not in by_name:
            raise UserError(f"sources: no member is named {name!r}{near(str(name), by_name)}")
    return [by_name[name] for name in dict.fromkeys(names)]


def definition(
    s: Study, label: str, measured: Measured, sources: list[Member] | None
) -> Definition:
    """The scores by one attack: of both directions, or of the sources' images alone."""
    outcomes = measured.outcomes
    if sources is None:
        sampled = noise.sampled_scores(outcomes, s.config.score.bootstrap)
        return Definition(label, sampled.values, sampled)
    one_sided = one_direction(s.config, label, outcomes)
    assert one_sided.sampled is not None
    names = {member.name for member in sources}
    others = [i for i, name in enumerate(outcomes.members) if name not in names]
    one_sided.scores[others] = np.nan
    one_sided.sampled.values[others] = np.nan
    return one_sided


def one_direction(config: DictConfig, label: str, outcomes: Outcomes) -> Definition:
    """One-sided scores of outcomes, with their draws."""
    sampled = noise.sampled_directions(outcomes, config.score.bootstrap)
    return Definition(label, sampled.values.copy(), sampled)


def white_box(s: Study, measured: list[tuple[str, Measured]], sources: list[Member] | None) -> None:
    """The white-box success of each attack: a weak attack makes all models look dissimilar."""
    attacked = None if sources is None else {member.name for member in sources}
    rows = [
        {
            "attack": label,
            "model": name,
            "white_box_success": float(m.outcomes.per_image(i, i).mean()),
        }
        for label, m in measured
        for i, name in enumerate(s.names)
        if attacked is None or name in attacked
    ]
    s.outputs.table("white_box", pl.DataFrame(rows))


def compare(
    s: Study,
    names: tuple[str, ...],
    comparisons: list[Comparison],
    sources: list[Member] | None = None,
) -> None:
    """The scatters, the table of correlations, and the page."""
    rows = [correlation(s, first, other, sources) for first, other in comparisons]
    table = s.outputs.table("correlations", pl.DataFrame(rows, infer_schema_length=None))
    s.tracker.summary(
        {f"attacks/r/{row['other']}": row["r"] for row in rows if not np.isnan(row["r"])}
    )
    long = pl.concat([pairs_table(names, first, other) for first, other in comparisons])
    texts = [
        f"r = {row['r']:.2f}, {row['test']} p {statistics.p_text(row['p'], row['permutations'])}, "
        f"n = {row['n']}"
        for row in rows
    ]
    picture = s.outputs.figure(
        "attacks",
        figure(names, comparisons, texts),
        long,
        "Scores of the same pairs by two definitions. Line and band: least squares and the 90% "
        "confidence band of its mean for independent pairs; dashed: equal scores.",
    )
    answer = [verdict(rows), *(sentence(row) for row in rows)]
    s.finish(
        f"Do scores of {len(names)} models depend on their definition?",
        "The same pairs scored by "
        + ", ".join(f"{first.name} and {other.name}" for first, other in comparisons)
        + f": {s.source}.",
        answer,
        [Section("Scores against scores", (), {"Correlations": table}, [picture])],
    )


def correlation(
    s: Study, first: Definition, other: Definition, sources: list[Member] | None
) -> dict[str, Any]:
    """Pearson's r of two definitions with its intervals and p-values, as a row."""
    x, y = first.scores, other.scores
    at = cells(x, y)
    images = OverImages()
    if first.sampled is not None and other.sampled is not None:
        images = noise.over_images(first.sampled.at(*at), other.sampled.at(*at), len(x))
    models_low = models_high = None
    if sources is None:
        association = associate(x, y, s.config.permutations)
        pairs, tested, test = association.pairs, association.test, "Mantel"
        if not np.isnan(association.low):
            models_low, models_high = association.low, association.high
    else:
        attacked = [i for i, name in enumerate(s.names) if name in {m.name for m in sources}]
        off = np.where(np.eye(len(x), dtype=bool), np.nan, 1.0)
        pairs, test = pearson(x[at], y[at]), "target permutation"
        tested = statistics.target_test(
            (x * off)[attacked], (y * off)[attacked], s.config.permutations
        )
    return {
        "reference": first.name,
        "other": other.name,
        "models": len(x),
        "n": pairs.n,
        "r": pairs.r,
        "models_low": models_low,
        "models_high": models_high,
        **images.row(),
        "p": tested.p,
        "permutations": tested.permutations,
        "test": test,
        "p_independent_pairs": pairs.p,
    }


def cells(x: NDArray, y: NDArray) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the pairs that both have: each once, or each direction if they differ."""
    rows, columns = statistics.pair_positions(x, y)
    known = ~np.isnan(x[rows, columns]) & ~np.isnan(y[rows, columns])
    return rows[known], columns[known]


def pairs_table(names: tuple[str, ...], first: Definition, other: Definition) -> pl.DataFrame:
    """One row per pair: a, b, reference, other (names), s_reference, s_other (nats)."""
    rows, columns = cells(first.scores, other.scores)
    return pl.DataFrame(
        {
            "a": [names[i] for i in rows],
            "b": [names[i] for i in columns],
            "reference": first.name,
            "other": other.name,
            "s_reference": first.scores[rows, columns],
            "s_other": other.scores[rows, columns],
        }
    )


@style()
def figure(names: tuple[str, ...], comparisons: list[Comparison], texts: list[str]) -> Figure:
    """A scatter plot for each comparison."""
    n = len(comparisons)
    across = 2 if n == 4 else min(3, n)
    drawing, axes = panels(across, 3.6, 3.3, rows=-(-n // across))
    for ax in axes[n:]:
        ax.remove()
    for ax, (first, other), text in zip(axes, comparisons, texts, strict=False):
        rows, columns = cells(first.scores, other.scores)
        x, y = first.scores[rows, columns], other.scores[rows, columns]
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        ax.plot(ends, ends, color="#999999", lw=0.8, ls=(0, (4, 3)), zorder=0, label="equal scores")
        one_source = len(set(rows)) == 1 < len(x)
        scatter(
            ax,
            x,
            y,
            f"s, {first.name} (nats)",
            f"s, {other.name} (nats)",
            names=[names[i] for i in columns] if one_source else None,
            trend=trend(x, y) if len(names) >= FEWEST else None,
            text=text,
        )
    return drawing


def verdict(rows: list[dict]) -> str:
    """Whether the definition matters, by the comparison with the lowest correlation."""
    known = [row for row in rows if not np.isnan(row["r"])]
    if not known or known[0]["models"] < FEWEST:
        return "Not certain: there are too few models or pairs for a verdict."
    worst = min(known, key=lambda row: row["r"])
    low, high = worst["models_low"], worst["models_high"]
    text = (
        f"{worst['reference']} and {worst['other']} share {worst['r'] ** 2:.0%} of the variance of "
        f"scores over {worst['n']} pairs"
    )
    if low is not None and low >= ALIKE:
        return f"No, hardly: {text}."
    if low is None or high >= ALIKE:
        return f"Not certain: {text}."
    return f"Yes: {text}."


def sentence(row: dict) -> str:
    """A comparison in words."""
    if np.isnan(row["r"]):
        return (
            f"{row['reference']} and {row['other']}: no correlation over {row['n']} "
            f"pair{'s' * (row['n'] != 1)} (too few, or all scores of one are the same)."
        )
    images = noise.text(row)
    if row["models_low"] is not None:
        ends = f"{row['models_low']:.2f} to {row['models_high']:.2f}"
        images = "; ".join([*filter(None, [images]), f"95% interval over models {ends}"])
    if row["models"] < FEWEST:
        few = f"too few models for an interval or a verdict (fewer than {FEWEST})"
        images = "; ".join([*filter(None, [images]), few])
    return (
        f"{row['reference']} and {row['other']}: Pearson r = {row['r']:.3f} over {row['n']} pairs "
        f"of {row['models']} models{f' ({images})' if images else ''}; {row['test']} p "
        f"{statistics.p_text(row['p'], row['permutations'])} ({row['permutations']:,} "
        "permutations). If pairs were independent, which they are not: p "
        f"{statistics.naive_text(row['p_independent_pairs'])}."
    )
