"""Do scores depend on the attack, or on having both directions? (Appendix G; Fig. G.1, G.2.)

Compares any two matrices over the same models: by two attacks, of two files, or the score against
its one-sided approximation. Writes attacks (each comparison as PNG, PDF and CSV),
correlations.csv and report.html.

On the 12 digits members (500 images): PGD-50 and PGD-10 r = 0.98, two-sided and one-sided r = 0.60
(66 pairs, 132 directions; both Mantel p <= 0.0001).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.common.members import build_members
from experiments.common.setting import build_attack, build_setting, check_sources
from experiments.common.study import Measured, Study, measure_prepared, study
from experiments.common.values import positive_int
from netkin import similarity
from netkin.analysis import matrix, statistics
from netkin.analysis.statistics import associate, correlations, pearson, trend
from netkin.errors import UserError, and_more, near
from netkin.jobs.progress import Bars
from netkin.report.scatter import scatter
from netkin.report.study import Section
from netkin.report.style import panels, style
from netkin.similarity import interval
from netkin.transfer.setting import AttackSpec
from netkin.zoo.member import Member

ONE_SIDED = "one-sided"


@dataclass(frozen=True)
class Definition:
    """One way to score pairs.

    Attributes:
        name: such as "pgd".
        scores: [N, N], symmetric or one-sided ([a, b]: a's images shown to b); NaN: not measured.
        draws: [draws, N, N] for shared draws of images, or None.
    """

    name: str
    scores: NDArray[np.float64]
    draws: NDArray[np.float64] | None = None


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    positive_int(config.permutations, "permutations")
    if config.similarity is not None and config.other is None:
        raise UserError("similarity=path.csv is to be compared with other=path.csv, which is null")
    if config.similarity is not None or config.other is not None or config.one_sided:
        with study(config) as s:
            names, first, others = two(s)
            compare(s, names, first, others)
        return
    specs = attack_specs(config)
    members = build_members(config)
    sources = chosen_sources(config, members)
    setting = build_setting(config)
    for i, (_, spec) in enumerate(specs):
        attacked = members if i == 0 or sources is None else sources
        check_sources(replace(setting, attack=spec), attacked, members)
    label, spec = specs[0]
    with study(config, spec) as s:
        assert s.measured is not None
        measured = [(label, s.measured)]
        for label, spec in specs[1:]:
            setting = replace(s.measured.setting, attack=spec)
            with Bars(s.console) as bars:
                outcomes = measure_prepared(config, setting, members, s.tracker, bars, sources)
            measured.append((label, replace(s.measured, setting=setting, outcomes=outcomes)))
        definitions = [definition(s, label, m, sources) for label, m in measured]
        white_box(s, measured, sources)
        compare(s, s.names, definitions[0], definitions[1:], sources)


def two(s: Study) -> tuple[tuple[str, ...], Definition, list[Definition]]:
    """A score and another of the same models: of a file, or one-sided of the same outcomes."""
    config, scores, names = s.config, s.scores, s.names
    title = "two-sided" if s.measured else str(config.similarity)
    if config.other is None:
        assert s.measured is not None
        found, score = s.measured.outcomes, config.score
        counts = similarity.resample(len(found.image_ids), score.bootstrap)
        return (
            names,
            Definition(title, scores, s.draws()),
            [
                Definition(
                    ONE_SIDED,
                    similarity.one_sided(found, score.eps_s),
                    similarity.one_sided(found, score.eps_s, counts),
                )
            ],
        )
    theirs = matrix.read(config.other, bool(config.symmetrise), bool(config.one_sided))
    common = tuple(name for name in names if name in theirs.names)
    if len(common) < 3:
        raise UserError(
            f"{title} and {config.other} share {len(common)} models, expected 3 or more "
            f"({and_more(names, 3)}; {and_more(theirs.names, 3)})"
        )
    return (
        common,
        Definition(title, s.matrix.of(common).scores),
        [Definition(str(config.other), theirs.of(common).scores)],
    )


def attack_specs(config: DictConfig) -> list[tuple[str, AttackSpec]]:
    """The attacks to compare, with the names that figures give them; each is composed as
    `attack=option` would be, with the run's own settings of it where it has such."""
    entries = config.attacks
    if not isinstance(entries, ListConfig) or len(entries) < 2:
        raise UserError(
            "attacks must list two or more, such as [pgd,{attack: pgd, steps: 10}], got "
            f"{entries}"
        )
    given = HydraConfig.get().overrides.task
    own = [text for text in given if not text.startswith(("attack", "+attack"))]
    of_attack = [text for text in given if text.startswith("attack.")]
    specs: dict[str, AttackSpec] = {}
    for entry in entries:
        settings = dict(entry) if isinstance(entry, DictConfig) else {"attack": entry}
        option = settings.pop("attack", None)
        if not isinstance(option, str):
            raise UserError(f"an entry of attacks is an option or {{attack: option}}, got {entry}")
        overrides = [*own, f"attack={option}"]
        known = [str(key) for key in compose("evaluate", overrides=overrides).attack]
        overrides += [text for text in of_attack if _key(text) in known]
        composed = compose("evaluate", overrides=overrides)
        for key, value in settings.items():
            if key not in known:
                raise UserError(f"attack {option} has no setting {key!r}{near(str(key), known)}")
            composed.attack[key] = value
        said = ", ".join(f"{key} = {value}" for key, value in settings.items())
        label = f"{option} ({said})" if said else option
        if label in specs:
            raise UserError(f"attacks lists {label} twice")
        specs[label] = build_attack(composed, option)
    return list(specs.items())


def _key(override: str) -> str:
    """The setting of an override: "steps" of "attack.steps=20"."""
    return override.removeprefix("attack.").split("=")[0].split(".")[0]


def chosen_sources(config: DictConfig, members: list[Member]) -> list[Member] | None:
    """The members that the other attacks are made on; None for all."""
    if config.sources is None:
        return None
    names = OmegaConf.to_container(config.sources)
    by_name = {member.name: member for member in members}
    if not isinstance(names, list) or not names:
        raise UserError(f"sources must be a list of members such as [vit_s], got {names}")
    for name in names:
        if name not in by_name:
            raise UserError(f"sources: no member is named {name!r}{near(str(name), by_name)}")
    return [by_name[name] for name in dict.fromkeys(names)]


def definition(
    s: Study, label: str, measured: Measured, sources: list[Member] | None
) -> Definition:
    """The scores by one attack: of both directions, or of the sources' images alone."""
    outcomes, score = measured.outcomes, s.config.score
    if sources is None:
        draws = similarity.bootstrap(outcomes, score.bootstrap, eps_s=score.eps_s)
        return Definition(label, similarity.matrix(outcomes, score.eps_s), draws)
    counts = similarity.resample(len(outcomes.image_ids), score.bootstrap)
    scores = similarity.one_sided(outcomes, score.eps_s)
    draws = similarity.one_sided(outcomes, score.eps_s, counts)
    named = {member.name for member in sources}
    others = [i for i, name in enumerate(outcomes.members) if name not in named]
    scores[others], draws[:, others] = np.nan, np.nan
    return Definition(label, scores, draws)


def white_box(s: Study, measured: list[tuple[str, Measured]], sources: list[Member] | None) -> None:
    """How often each attack fools its own source: an attack that is weak makes all seem apart."""
    named = None if sources is None else {member.name for member in sources}
    rows = [
        {
            "attack": label,
            "model": name,
            "white_box_success": float(m.outcomes.per_image(i, i).mean()),
        }
        for label, m in measured
        for i, name in enumerate(s.names)
        if named is None or name in named
    ]
    s.outputs.table("white_box", pl.DataFrame(rows))


def compare(
    s: Study,
    names: tuple[str, ...],
    first: Definition,
    others: list[Definition],
    sources: list[Member] | None = None,
) -> None:
    """The scatters, the table of correlations, and the page."""
    rows = [correlation(s, first, other, sources) for other in others]
    table = s.outputs.table("correlations", pl.DataFrame(rows, infer_schema_length=None))
    s.tracker.metrics(
        {f"attacks/r/{row['other']}": row["r"] for row in rows if not np.isnan(row["r"])}
    )
    long = pl.concat([pairs_table(names, first, other) for other in others])
    texts = [
        f"r = {row['r']:.2f}, {row['test']} p {statistics.p_text(row['p'], s.config.permutations)}"
        for row in rows
    ]
    picture = s.outputs.figure(
        "attacks",
        figure(names, first, others, texts),
        long,
        "Scores of the same pairs by two definitions. Line and band: least squares and the 90% "
        "confidence band of its mean, pairs taken for independent; dashed: equal scores.",
    )
    said = [sentence(row, s.config.permutations) for row in rows]
    s.finish(
        f"How much do scores of {len(names)} models depend on their definition?",
        f"The same pairs scored by {first.name} and by "
        f"{', '.join(other.name for other in others)}, of {s.source}.",
        said,
        [
            Section("Scores against scores", said, {"Correlations": table}, [picture]),
        ],
    )


def correlation(
    s: Study, first: Definition, other: Definition, sources: list[Member] | None
) -> dict[str, Any]:
    """Pearson's r of two definitions with its intervals and p-values, as a row."""
    x, y = first.scores, other.scores
    rows, columns = cells(x, y)
    low = high = None
    if first.draws is not None and other.draws is not None:
        low, high = interval(
            correlations(first.draws[:, rows, columns], other.draws[:, rows, columns])
        )
    if sources is None:
        found = associate(x, y, s.config.permutations)
        pairs, p, test = found.pairs, found.p, "Mantel"
    else:
        mine = [i for i, name in enumerate(s.names) if name in {m.name for m in sources}]
        off = np.where(np.eye(len(x), dtype=bool), np.nan, 1.0)
        pairs = pearson(x[rows, columns], y[rows, columns])
        p = statistics.target_p((x * off)[mine], (y * off)[mine], s.config.permutations)
        test = "target permutation"
    return {
        "reference": first.name,
        "other": other.name,
        "models": len(x),
        "n": pairs.n,
        "r": pairs.r,
        "images_low": low,
        "images_high": high,
        "p": p,
        "test": test,
        "p_taking_pairs_for_independent": pairs.p,
    }


def cells(x: NDArray, y: NDArray) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of the pairs that both have: each once, or each direction where they differ."""
    rows, columns = statistics.pair_positions(x, y)
    known = ~np.isnan(x[rows, columns]) & ~np.isnan(y[rows, columns])
    return rows[known], columns[known]


def pairs_table(names: tuple[str, ...], first: Definition, other: Definition) -> pl.DataFrame:
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
def figure(
    names: tuple[str, ...], first: Definition, others: list[Definition], texts: list[str]
) -> Figure:
    """A scatter for each comparison."""
    across = 2 if len(others) == 4 else min(3, len(others))
    made, axes = panels(across, 3.6, 3.3, rows=-(-len(others) // across))
    for ax in axes[len(others) :]:
        ax.remove()
    for ax, other, text in zip(axes, others, texts, strict=False):
        rows, columns = cells(first.scores, other.scores)
        x, y = first.scores[rows, columns], other.scores[rows, columns]
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        ax.plot(ends, ends, color="#999999", lw=0.8, ls=(0, (4, 3)), zorder=0)
        one_source = len(set(rows)) == 1 < len(x)
        scatter(
            ax,
            x,
            y,
            f"s, {first.name} (nats)",
            f"s, {other.name} (nats)",
            names=[names[i] for i in columns] if one_source else None,
            trend=trend(x, y),
            text=text,
        )
    return made


def sentence(row: dict, permutations: int) -> str:
    """A comparison in words."""
    if np.isnan(row["r"]):
        return (
            f"{row['reference']} and {row['other']}: no correlation over {row['n']} "
            f"pair{'s' * (row['n'] != 1)} (too few, or one of them gives all pairs the same score)."
        )
    over = ""
    if row["images_low"] is not None:
        over = f" (95% interval over images {row['images_low']:.3f} to {row['images_high']:.3f})"
    return (
        f"{row['reference']} and {row['other']}: Pearson r = {row['r']:.3f}{over} over {row['n']} "
        f"pairs of {row['models']} models; {row['test']} p "
        f"{statistics.p_text(row['p'], permutations)}. Taking pairs for independent, which they "
        f"are not: p {statistics.naive_text(row['p_taking_pairs_for_independent'])}."
    )
