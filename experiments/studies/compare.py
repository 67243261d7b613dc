"""Do scores depend on how they are measured? A reference matrix, and others of the same models.

Each other one is a definition: a file, or the run's config with some values changed.

- experiment=compare: two runs or files. Also where they differ most (differences, models.csv).
- experiment=attacks: other attacks, or scores of one direction (Appendix G; Fig. G.1, G.2).
- experiment=precision: other precisions, of crafting and of targets, beside another seed, whose
  effect is chance alone.
- experiment=budget: fewer, longer steps (attack.step_size=null), and fewer images, drawn at random
  several times: r says whether the order of pairs stays, the bias whether the level does.

On the 12 digits members (500 images): PGD-50 and PGD-10 r = 0.98, two-sided and one-sided r = 0.60
(66 pairs, 132 directions; both Mantel p <= 0.0001). Precisions: experiments/results/speed.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig, ListConfig, OmegaConf
from sklearn.metrics import adjusted_rand_score

from experiments.cli import sat69
from experiments.cli.finish import terminal
from experiments.cli.members import build_members
from experiments.cli.runs import command
from experiments.cli.setting import build_attack, build_settings, on_cpu
from experiments.cli.study import Study, family, study
from experiments.cli.values import naming
from netkin import similarity
from netkin.analysis import matrix, noise, statistics
from netkin.analysis.clusters import choose_k, spectral
from netkin.analysis.matrix import Matrix, off_diagonal, pair_values, position_of
from netkin.analysis.noise import OverImages, Sampled
from netkin.analysis.statistics import ALIKE, FEWEST, associate, pearson, trend
from netkin.analysis.verdict import verdict
from netkin.attacks import PGD, Attack
from netkin.errors import UserError, and_more, near
from netkin.jobs.progress import Bars
from netkin.model import Model
from netkin.report.heatmap import heatmap_figure
from netkin.report.plots import Line, lines_figure, scatter
from netkin.report.sentences import Sentences
from netkin.report.study import Section
from netkin.report.style import panels, style
from netkin.report.text import percent
from netkin.results import Results
from netkin.run import Run, check_sources
from netkin.similarity import Outcomes
from netkin.zoo import execution
from netkin.zoo.execution import PRECISIONS, TARGET_PRECISIONS, Execution, check_execution

text = Sentences(Path(__file__).with_suffix(".toml"))


@dataclass(frozen=True)
class Definition:
    """One way to score pairs.

    Attributes:
        name: such as "pgd".
        scores: [N, N], symmetric or one-sided ([a, b]: b on a's images); NaN where not measured.
        sampled: on other images, drawn in the same way for all definitions; None for a file.
        intervals: of `netkin.similarity.pairs`, where other scores are looked for inside them.
    """

    name: str
    scores: NDArray[np.float64]
    sampled: Sampled | None = None
    intervals: pl.DataFrame | None = None


Comparison = tuple[Definition, Definition]


def run(config: DictConfig) -> None:
    """The study, from a composed config."""
    kinds = {"compare": files, "attacks": attacks, "precision": precision, "budget": budget}
    kinds[config.experiment.name](config)


def changed(config: DictConfig, values: dict[str, Any]) -> DictConfig:
    """A config with other values of some keys."""
    result = config.copy()
    for key, value in values.items():
        OmegaConf.update(result, key, value)
    return result


def outcomes_under(
    s: Study, config: DictConfig, attack: Attack | None = None, sources: Sequence[str] | None = None
) -> tuple[Run, Outcomes]:
    """The study's models under the attack and the precisions of another config: run and outcomes.

    Args:
        s: the study.
        config: as `changed`.
        attack: instead of the config's.
        sources: names of the models that are attacked; all, unless given.
    """
    assert s.measured is not None
    r = s.measured.run.under(
        attack=attack or build_attack(config),
        craft_precision=config.hardware.craft_precision,
        target_precision=config.transfer.precision,
    )
    r = replace(r, settings=replace(r.settings, sources=sources, watch=None))
    return r, r.measure()


def defined(
    s: Study, name: str, outcomes: Outcomes, sources: Sequence[str] | None = None
) -> Definition:
    """The scores of outcomes: of both directions, or of the sources' images alone."""
    draws, one_sided = s.config.score.bootstrap, sources is not None
    sampled = noise.sampled_scores(outcomes, draws, one_sided=one_sided)
    if sources is not None:
        sampled.values[[name not in sources for name in outcomes.members]] = np.nan
    return Definition(name, sampled.values, sampled)


# Two files or runs


def files(config: DictConfig) -> None:
    """experiment=compare: two runs, CSV files, or the published matrix."""
    first = config.copy()
    first.similarity = config.similarity if config.a == "sat69" else {"file": csv(config, "a")}
    with study(first) as s:
        compare(s, *two(s, str(config.a), str(config.b), load(config, "b")))


def csv(config: DictConfig, key: str) -> Path:
    """The file of scores that a key names: the similarity.csv of a run's folder, or a CSV file."""
    path = Path(str(config[key])).expanduser()
    if not path.is_dir():
        return path
    if not (path / "similarity.csv").is_file():
        raise UserError(
            f"{key}={config[key]} has no similarity.csv; name the folder of a run of "
            "experiment=pairwise, a CSV file of scores, or sat69"
        )
    return path / "similarity.csv"


def load(config: DictConfig, key: str) -> Matrix:
    """The matrix that a key names: sat69, a run's folder with a similarity.csv, or a CSV file."""
    if config[key] == "sat69":
        return sat69.load(config)[0]
    return matrix.read(csv(config, key), bool(config.symmetrise))


def two(
    s: Study, title: str, other: str, theirs: Matrix
) -> tuple[tuple[str, ...], list[Comparison], list[str]]:
    """The models that both matrices have, their scores, and how many models only one has."""
    common = tuple(name for name in s.names if name in theirs.names)
    if len(common) < 3:
        raise UserError(
            f"{title} and {other} share {len(common)} models, expected 3 or more "
            f"({and_more(s.names, 3)}; {and_more(theirs.names, 3)})"
        )
    left_out = [
        text("only", n=len(names) - len(common), name=name)
        for name, names in ((title, s.names), (other, theirs.names))
        if len(names) > len(common)
    ]
    pair = (
        Definition(title, s.matrix.of(common).scores),
        Definition(other, theirs.of(common).scores),
    )
    return common, [pair], left_out


# Attacks


def attacks(config: DictConfig) -> None:
    """Other attacks, or one direction."""
    if config.one_sided:
        with study(config) as s:
            assert s.measured is not None
            there = defined(s, "one-sided", s.measured.outcomes, s.names)
            # The two-sided score contains the one-sided one; the other direction does not.
            assert there.sampled is not None
            parts = (there.sampled.values, there.sampled.draws, there.sampled.halves)
            turned = Sampled(*(part.swapaxes(-1, -2) for part in parts))
            back = Definition("the other direction", there.scores.T, turned)
            both = defined(s, "two-sided", s.measured.outcomes)
            compare(s, s.names, [(both, there), (there, back)])
        return
    listed, members, sources = listed_attacks(config), build_members(config), config.sources
    if sources is not None:
        if not isinstance(sources, ListConfig) or not sources:
            raise UserError(f"sources must be a list of members such as [vit_s], got {sources}")
        names = [member.name for member in members]
        sources = [names[position_of(name, names, "sources: the run")] for name in sources]
    (label, attack), *others = listed.items()
    for each, attacked in ((attack, None), *((other, sources) for _, other in others)):
        settings = build_settings(config, terminal(), lambda _: None, members, each)
        check_sources(replace(settings, sources=attacked))
    with study(config, attack) as s:
        assert s.measured is not None
        measured = {label: s.measured.outcomes}
        measured |= {name: outcomes_under(s, config, each, sources)[1] for name, each in others}
        success = [
            (name, model, float(outcomes.per_image(i, i).mean()))
            for name, outcomes in measured.items()
            for i, model in enumerate(s.names)
            if sources is None or model in sources
        ]  # a weak attack makes all models look dissimilar
        schema = ["attack", "model", "white_box_success"]
        s.outputs.table("white_box", pl.DataFrame(success, schema=schema, orient="row"))
        reference, *rest = (defined(s, *item, sources) for item in measured.items())
        compare(s, s.names, [(reference, other) for other in rest], sources=sources)


def listed_attacks(config: DictConfig) -> dict[str, Attack]:
    """The attacks to compare, by label.

    Each is composed as by `attack=option`. Overrides of attack.* on the command line apply to each
    attack that has the setting; an entry's own settings take precedence.
    """
    entries = config.attacks
    if not isinstance(entries, ListConfig) or len(entries) < 2:
        raise UserError(
            f"attacks must list two or more, such as [pgd,{{attack: pgd, steps: 10}}], got "
            f"{entries}"
        )
    overrides = HydraConfig.get().overrides.task
    others = [each for each in overrides if not each.startswith(("attack", "+attack"))]
    parsed = OverridesParser.create().parse_overrides(
        [each for each in overrides if each.startswith("attack.")]
    )
    shared = {each.key_or_group.removeprefix("attack."): each.value() for each in parsed}
    found: dict[str, tuple[DictConfig, Attack]] = {}
    for entry in entries:
        given = dict(entry) if isinstance(entry, DictConfig) else {"attack": entry}
        option = given.pop("attack", None)
        if not isinstance(option, str):
            raise UserError(
                f"an entry of attacks is an option or {{attack: option, ...}}, got {entry}"
            )
        texts = ", ".join(f"{key} = {value}" for key, value in given.items())
        label = f"{option} ({texts})" if given else option
        if label in found:
            raise UserError(f"attacks lists {label} twice")
        composed = compose("evaluate", overrides=[*others, f"attack={option}"])
        known = [str(key) for key in composed.attack]
        if unknown := [str(key) for key in given if key not in known]:
            raise UserError(
                f"attack {option} has no setting {unknown[0]!r}{near(unknown[0], known)}"
            )
        values = {k: v for k, v in shared.items() if k.split(".")[0] in known} | given
        composed = changed(composed, {f"attack.{key}": value for key, value in values.items()})
        for other, (earlier, _) in found.items():
            if earlier == composed.attack:
                raise UserError(
                    f"attacks: {other} and {label} are the same attack, since attack.* on the "
                    "command line applies to each; choose others with attacks=[...]"
                )
        found[label] = composed.attack, build_attack(composed, option)
    return {label: attack for label, (_, attack) in found.items()}


# The page of compare, attacks and precision


def compare(
    s: Study,
    names: tuple[str, ...],
    comparisons: list[Comparison],
    left_out: Sequence[str] = (),
    sources: Sequence[str] | None = None,
    shares: Sequence[dict[str, float]] = (),
) -> None:
    """The scatters, the table of correlations, where two files differ most, and the page.

    Args:
        s: the study.
        names: of the N models.
        comparisons: of a reference with another definition each.
        left_out: sentences on models that only one of two files has.
        sources: the models that were attacked, if not all.
        shares: further columns of the table, of `differing`.
    """
    name, given = s.config.experiment.name, comparisons[0][1].sampled is None
    rows = [correlation(s, *each, sources) for each in comparisons]
    rows = [{**row, **more} for row, more in zip(rows, shares or [{}] * len(rows), strict=True)]
    table = s.outputs.table("correlations", pl.DataFrame(rows, infer_schema_length=None))
    for row in rows:
        if not np.isnan(row["r"]):
            s.tracker.summary({f"{name}/r" if given else f"{name}/r/{row['other']}": row["r"]})
    parts = [pairs_table(names, *each) for each in comparisons]
    pairs = pl.concat(parts)
    if given:
        pairs = pairs.sort(pl.col("difference").abs(), descending=True)
    picture = s.outputs.figure(name, figure(parts, rows), pairs, text("caption"))
    sections = [Section("Scores against scores", (), {"Correlations": table}, [picture])]
    answer = precision_answer(rows) if shares else [decided(rows, name), *map(sentence, rows)]
    if given:
        section, differ = differences_section(s, names, comparisons[0], pairs)
        sections.append(section)
        answer.insert(1, differ)
    described = [f"{first.name} and {other.name}" for first, other in comparisons]
    s.finish(
        text(f"{name}.title", n=len(names), what=described[0]),
        f"The same pairs scored by {', '.join(described)}: {s.source}.",
        [*answer, *left_out],
        sections,
    )


def correlation(
    s: Study, first: Definition, other: Definition, sources: Sequence[str] | None
) -> dict[str, Any]:
    """Pearson's r of two definitions with its intervals and p-values, as a row."""
    x, y = first.scores, other.scores
    at, images = cells(x, y), OverImages()
    if first.sampled is not None and other.sampled is not None:
        images = noise.over_images(first.sampled.at(*at), other.sampled.at(*at), len(x))
    settings, low, high = s.config.get("compare", s.config), np.nan, np.nan
    permutations = settings.get("permutations", statistics.PERMUTATIONS)
    if sources is None:
        a = associate(x, y, permutations)
        pairs, tested, test, low, high = a.pairs, a.test, "Mantel", a.low, a.high
    else:
        attacked = [i for i, name in enumerate(s.names) if name in sources]
        off = np.where(np.eye(len(x), dtype=bool), np.nan, 1.0)
        pairs, test = pearson(x[at], y[at]), "target permutation"
        tested = statistics.target_test((x * off)[attacked], (y * off)[attacked], permutations)
    return {
        "reference": first.name,
        "other": other.name,
        "models": len(x),
        "n": pairs.n,
        "r": pairs.r,
        "models_low": None if np.isnan(low) else low,
        "models_high": None if np.isnan(low) else high,
        **images.row(),
        "p": tested.p,
        "permutations": tested.permutations,
        "test": test,
        "p_independent_pairs": pairs.p,
        **changes(first, other),
    }


def changes(first: Definition, other: Definition) -> dict[str, float]:
    """How scores change from one definition to another, over pairs, in nats: columns of the table.

    Empty where one of them is one-sided. The mean difference has its 95% interval over images.
    """
    x, y = first.scores, other.scores
    if not all(np.allclose(m, m.T, equal_nan=True) for m in (x, y)):
        return {}
    difference = off_diagonal(y - x)
    row = {
        "mean_difference": float(difference.mean()),
        "mean_absolute_difference": float(np.abs(difference).mean()),
        "largest_difference": float(np.abs(difference).max()),
    }
    if first.sampled is not None and other.sampled is not None:
        one, two = first.sampled, other.sampled
        mean = float(pair_values(two.values - one.values).mean())
        low, high = similarity.interval(pair_values(two.draws - one.draws).mean(axis=1))
        row |= {"mean_difference": mean, "mean_low": low, "mean_high": high}
    if first.intervals is not None:
        low, high = first.intervals.select("low", "high").to_numpy().T
        row["mean_half_width"] = float((high - low).mean() / 2)
        row["inside_interval"] = inside(first.intervals, y)
    return row


def inside(intervals: pl.DataFrame, scores: NDArray) -> float:
    """The share of pairs whose scores, [N, N], are inside intervals of `similarity.pairs`."""
    values = scores[np.triu_indices(len(scores), k=1)]
    low, high = intervals.select("low", "high").to_numpy().T
    return float(((low <= values) & (values <= high)).mean())


def cells(x: NDArray, y: NDArray) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the pairs that both have: each once, or each direction if they differ."""
    rows, columns = statistics.pair_positions(x, y)
    known = ~np.isnan(x[rows, columns]) & ~np.isnan(y[rows, columns])
    return rows[known], columns[known]


def pairs_table(names: tuple[str, ...], first: Definition, other: Definition) -> pl.DataFrame:
    """A row a pair: a, b, reference, other (definitions), s_reference, s_other, and difference, the
    first less the second (nats)."""
    rows, columns = cells(first.scores, other.scores)
    x, y, of = first.scores[rows, columns], other.scores[rows, columns], np.array(names)
    both = {"reference": pl.lit(first.name), "other": pl.lit(other.name)}
    table = pl.DataFrame({"a": of[rows], "b": of[columns]}).with_columns(**both)
    return table.with_columns(s_reference=x, s_other=y, difference=x - y)


@style()
def figure(parts: list[pl.DataFrame], found: list[dict]) -> Figure:
    """A scatter plot for each table of pairs and its row of correlations."""
    n = len(parts)
    across = 2 if n == 4 else min(3, n)
    drawing, axes = panels(across, 3.6, 3.3, rows=-(-n // across))
    for ax in axes[n:]:
        ax.remove()
    for ax, pairs, row in zip(axes, parts, found, strict=False):
        x, y = pairs.select("s_reference", "s_other").to_numpy().T
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        ax.plot(ends, ends, color="#999999", lw=0.8, ls=(0, (4, 3)), zorder=0, label="equal scores")
        labels = [f"s, {row[which]} (nats)" for which in ("reference", "other")]
        p = statistics.p_text(row["p"], row["permutations"])
        note = f"r = {row['r']:.2f}, {row['test']} p {p}, n = {row['n']}"
        names = pairs["b"].to_list() if pairs["a"].n_unique() == 1 < pairs.height else None
        line = trend(x, y) if row["models"] >= FEWEST else None
        scatter(ax, x, y, *labels, names=names, trend=line, text=note)
    return drawing


def decided(rows: list[dict], question: str) -> str:
    """Whether definitions agree, by the comparison with the lowest correlation."""
    known = [row for row in rows if not np.isnan(row["r"])]
    if not known or known[0]["models"] < FEWEST:
        return text(f"{question}.few", models=rows[0]["models"])
    worst = min(known, key=lambda row: row["r"])
    ends = worst["models_low"], worst["models_high"]
    decision = verdict(worst["r"], ends, worst["p"], threshold=ALIKE)
    return text(question, decision, share=text("share", share=worst["r"] ** 2, **worst))


def sentence(row: dict) -> str:
    """A comparison in words."""
    if np.isnan(row["r"]):
        return text("undefined", **row)
    notes = [noise.text(row)]
    if row["models_low"] is not None:
        notes.append(text("models", low=row["models_low"], high=row["models_high"]))
    if row["models"] < FEWEST:
        notes.append(text("few", fewest=FEWEST))
    listed = "; ".join(filter(None, notes))
    p = statistics.p_text(row["p"], row["permutations"])
    naive = statistics.p_text(row["p_independent_pairs"])
    return text("r", **{**row, "p": p}, notes=f" ({listed})" if listed else "", naive=naive)


def differences_section(
    s: Study, names: tuple[str, ...], comparison: Comparison, pairs: pl.DataFrame
) -> tuple[Section, str]:
    """Where two matrices differ: a heatmap, the models and the pairs, sorted, that differ most."""
    (a, b), n = comparison, len(names)
    off = ~np.eye(n, dtype=bool)
    difference = np.where(off, a.scores - b.scores, 0.0)
    near_a, near_b = (np.where(off, m.scores, -np.inf).argmax(axis=1) for m in comparison)
    models = pl.DataFrame(
        {
            "model": names,
            "mean_difference": [float(difference[i, off[i]].mean()) for i in range(n)],
            "r": [pearson(a.scores[i, off[i]], b.scores[i, off[i]]).r for i in range(n)],
            "nearest_in_a": [names[i] for i in near_a],
            "nearest_in_b": [names[i] for i in near_b],
        }
    ).sort(pl.col("mean_difference").abs(), descending=True)
    s.outputs.table("models", models)
    families, label = list(map(family, names)), "difference of s (nats)"
    drawing = heatmap_figure(difference, names, families, label, signed=True)
    table, caption = Matrix(names, difference).table(), text("difference", a=a.name, b=b.name)
    picture = s.outputs.figure("differences", drawing, table, caption)
    shown = s.config.compare.pairs
    mean, first = float(pairs["difference"].to_numpy().mean()), models.row(0, named=True)
    listed = [
        f"{row['b']} and {row['a']} ({row['s_reference']:.2f} and {row['s_other']:.2f})"
        for row in pairs.head(3).iter_rows(named=True)
    ]
    differ = text(
        "differ",
        a=a.name,
        b=b.name,
        mean=abs(mean),
        direction="higher" if mean >= 0 else "lower",
        pairs=", ".join(listed),
        model=first["model"],
        most=first["mean_difference"],
        changed=int((near_a != near_b).sum()),
        models=n,
    )
    tables = {f"The {shown} pairs that differ most": pairs.head(shown), "Models": models}
    return Section("Where they differ", (), tables, [picture]), differ


# Precisions and a seed


def precision(config: DictConfig) -> None:
    """The run in other precisions and from another seed."""
    crafting, targets = precisions(config)
    if "seed" not in config.attack:
        raise UserError("experiment=precision needs an attack with a seed, such as attack=pgd")
    if config.seed == config.attack.seed:
        raise UserError(f"seed must differ from attack.seed ({config.attack.seed})")
    changes = {name: {"hardware.craft_precision": name} for name in crafting}
    changes[f"seed {config.seed}"] = {"attack.seed": config.seed}
    changes |= {f"transfer {name}": {"transfer.precision": name} for name in targets}
    with study(config) as s:
        assert s.measured is not None
        first, eps_s = s.measured, config.score.eps_s

        def paper(name: str, outcomes: Outcomes) -> Definition:
            scores = similarity.matrix(outcomes, eps_s)
            return replace(defined(s, name, outcomes), scores=scores)

        reference = paper(config.hardware.craft_precision, first.outcomes)
        reference = replace(reference, intervals=similarity.pairs(first.outcomes, eps_s))
        comparisons, shares = [], []
        for name, values in changes.items():
            s.console.print(f"\n{name}")
            r, outcomes = outcomes_under(s, changed(config, values))
            comparisons.append((reference, paper(name, outcomes)))
            shares.append(differing(first.results, r.results, first.members))
        compare(s, s.names, comparisons, shares=shares)


def precisions(config: DictConfig) -> tuple[list[str], list[str]]:
    """The precisions of crafting and of targets to compare with the run's own.

    Raises UserError for what this device lacks.
    """
    gpu, present, chosen = not on_cpu(config), config.hardware.craft_precision, config.precisions
    if chosen == "auto":
        chosen = [name for name in execution.precisions(gpu) if name != present]
    elif not isinstance(chosen, ListConfig) or not chosen:
        raise UserError(f"precisions must be auto or a list of them, got {chosen!r}")
    for name in chosen:
        if name not in PRECISIONS:
            raise UserError(f"precisions must be {' or '.join(PRECISIONS)}, got {name!r}")
        with naming({"precision": "precisions"}):
            check_execution(Execution(name), gpu)
        if name == present:
            raise UserError(f"precisions names {name}, which is the run's own: leave it out")
    targets = [
        name for name in TARGET_PRECISIONS if name in {*chosen} - {config.transfer.precision}
    ]
    return list(dict.fromkeys(chosen)), targets


def differing(ours: Results, theirs: Results, members: Sequence[Model]) -> dict[str, float]:
    """The shares of stored pixels, of predictions on them, and of outcomes, that differ.

    Predictions are those of all pairs of members on the images that both classify correctly, which
    are the same in both.
    """
    names, key = [member.name for member in members], ["source", "target", "image_id"]
    pixels, rows = np.zeros(2), np.zeros(3)
    for member in members:  # one target at a time: all rows of a large zoo fill the memory
        for shard in range(len(ours.evaluation.shards)):
            one, other = (each.adversarial(member, shard)[0] for each in (ours, theirs))
            pixels += int(torch.count_nonzero(one != other)), one.numel()
        one, other = (each.outcome_store.read(member.name, names) for each in (ours, theirs))
        both = one.join(other, on=key, suffix="_other", validate="1:1")
        assert both.height == one.height == other.height
        differ = [(both[c] != both[f"{c}_other"]).sum() for c in ("prediction", "fooled")]
        rows += [both.height, *differ]
    return {
        "differing_pixels": float(pixels[0] / pixels[1]),
        "differing_predictions": float(rows[1] / rows[0]),
        "differing_outcomes": float(rows[2] / rows[0]),
    }


def precision_answer(rows: list[dict]) -> list[str]:
    """Whether a precision changes scores by more than a seed does, and each change."""
    by = {row["other"]: row["mean_absolute_difference"] for row in rows}
    (seed,) = (by.pop(name) for name in list(by) if name.startswith("seed "))
    answer = []
    if by:
        worst = max(by, key=lambda name: by[name])
        values = {"variant": worst, "change": by[worst], "seed": seed}
        answer.append(text("precision.verdict", verdict(by[worst], threshold=seed), **values))
    for row in rows:
        r_text = "" if np.isnan(row["r"]) else f", r = {row['r']:.4f}"
        answer.append(text("precision.variant", r_text=r_text, **row))
    return answer


# Fewer steps and images


def budget(config: DictConfig) -> None:
    """Fewer steps of the attack, and fewer images."""
    given, attack = list(config.budget.steps), build_attack(config)
    if not isinstance(attack, PGD):
        raise UserError(
            f"experiment=budget takes an attack of steps, such as pgd, got {attack.name}"
        )
    steps = attack.steps
    fewer = sorted({n for n in given if n < steps})
    if not fewer:
        raise UserError(f"budget.steps must have a number below attack.steps={steps}, got {given}")
    with study(config) as s:
        assert s.measured is not None
        found = {
            n: outcomes_under(s, changed(config, {"attack.steps": n, "attack.step_size": None}))[1]
            for n in fewer
        }
        rows = budget_table(s, {**found, steps: s.measured.outcomes}, steps)
        on_all = rows.filter(images=rows["images"].max()).to_dicts()
        s.tracker.summary({f"budget/r/{row['steps']}": row["r"] for row in on_all})
        total = on_all[0]["images"]
        caption = text("budget.caption", steps=steps, total=total, draws=config.budget.draws)
        picture = s.outputs.figure("budget", budget_figure(rows), rows, caption)
        levels = "; ".join(text("budget.shift", **row) for row in on_all if row["steps"] != steps)
        s.finish(
            f"How few steps and images give the matrix of {len(s.names)} models?",
            f"The reference is {s.source}. Fewer steps are longer ones, which can cross the ball.",
            [*budget_answer(s, rows, steps, total), text("budget.level", levels=levels)],
            [Section("Cost and certainty", figures=[picture], tables={"Settings": rows})],
        )


def budget_table(s: Study, found: dict[int, Outcomes], steps: int) -> pl.DataFrame:
    """A row for each number of steps and images: steps, images, those of `against`, passes (in
    forward passes) and cost (a share of the reference's)."""
    options, reference = s.config.budget, found[steps]
    total, whole = len(reference.image_ids), passes(reference, steps)
    rng, rows = np.random.default_rng(0), []
    compared = Reference(reference, s.config.score.eps_s)
    sizes = [*sorted({n for n in options.images if n < total}), total]
    with Bars(s.console) as bars:
        bars.start("compare", ["matrices"], len(sizes) * len(found), "cells")
        for size in sizes:
            draws = options.draws if size < total else 1
            drawn = [rng.choice(total, size, replace=False) for _ in range(draws)]
            for number, outcome in sorted(found.items()):
                parts = [outcome.on(list(images)) for images in drawn]
                cost = float(np.mean([passes(part, number) for part in parts]))
                if (values := compared.against(parts)) is not None:
                    cell = {"steps": number, "images": size, **values}
                    rows.append({**cell, "passes": cost, "cost": cost / whole})
                bars.advance("compare", 1)
    return pl.DataFrame(rows)


class Reference:
    """The matrix of outcomes, its intervals and clusters, with which others are compared."""

    def __init__(self, outcomes: Outcomes, eps_s: float):
        self.scores = similarity.smoothed_matrix(outcomes)
        self.intervals = similarity.pairs(outcomes, eps_s)
        self.k, _ = choose_k(None, self.scores)
        self.labels = self.clusters(self.scores, 100)

    def clusters(self, scores: NDArray, restarts: int) -> NDArray[np.intp]:
        """The clusters of a matrix [N, N]: a single one where all scores are the same."""
        if np.ptp(off_diagonal(scores)) == 0:
            return np.zeros(len(scores), dtype=np.intp)
        return spectral(scores, self.k, restarts=restarts)

    def against(self, parts: Sequence[Outcomes]) -> dict[str, float] | None:
        """Draws of outcomes compared with it: r, r_low and r_high (the 95% range over draws), bias
        (nats), inside (the share of pairs inside its intervals), clusters (adjusted Rand index).
        None where in every draw a pair has no image that both classify correctly."""
        if not (matrices := list(smoothed(parts))):
            return None
        pairs = off_diagonal(self.scores)
        r = [np.nan_to_num(pearson(pairs, off_diagonal(m)).r) for m in matrices]
        r_low, r_high = similarity.interval(np.array(r))
        same = [adjusted_rand_score(self.labels, self.clusters(m, 20)) for m in matrices[:5]]
        return {
            "r": float(np.mean(r)),
            "r_low": r_low,
            "r_high": r_high,
            "bias": float(np.mean([off_diagonal(m) - pairs for m in matrices])),
            "inside": float(np.mean([inside(self.intervals, m) for m in matrices])),
            "clusters": float(np.mean(same)),
        }


def smoothed(parts: Sequence[Outcomes]) -> Iterator[NDArray[np.float64]]:
    """The scores of outcomes, without those in which a pair has no image in common."""
    for outcomes in parts:
        try:
            yield similarity.smoothed_matrix(outcomes)
        except UserError:
            continue


def passes(outcomes: Outcomes, steps: int) -> float:
    """The cost of outcomes in forward passes of one image: crafting, whose steps have a forward and
    a backward pass, which counts as two, and transfer."""
    correct = outcomes.correct.astype(float)
    return float(correct.sum() * steps * 3 + (correct @ correct.T).sum())


def cheapest(rows: pl.DataFrame, options: Any) -> dict[str, Any] | None:
    """The cheapest row whose matrix is the reference's within the tolerance; None without one."""
    good = rows.filter(
        pl.col("r") >= options.least_r,
        pl.col("bias").abs() <= options.most_bias,
        pl.col("inside") >= options.least_inside,
        pl.col("cost") < 1,
    ).sort("cost")
    return good.row(0, named=True) if good.height else None


def budget_answer(s: Study, rows: pl.DataFrame, steps: int, total: int) -> list[str]:
    """The verdict, the command that uses the cheapest setting, and what holds for clusters."""
    options = s.config.budget
    best = cheapest(rows, options)

    def named(row: dict[str, Any]) -> str:
        images = f" on {row['images']} of {total} images" if row["images"] < total else ""
        return f"{row['steps']} steps{images}"

    values = {"least_r": options.least_r, "most_bias": options.most_bias}
    bounds = text("budget.bounds", inside=percent(options.least_inside), **values)
    answer = [text("budget.No", bounds=bounds)]
    if best is not None:
        shares = {"cost": percent(best["cost"]), "inside": percent(best["inside"])}
        values = {**best, **shares, "steps": steps, "total": total, "bounds": bounds}
        use = text("budget.use", command=budget_command(s, best, steps, total))
        answer = [text("budget.Yes", setting=named(best), **values), use]
    least = options.least_clusters
    if len(s.names) > FEWEST and (best is None or best["clusters"] < least):
        same = rows.filter(pl.col("clusters") >= least, pl.col("cost") < 1).sort("cost").to_dicts()
        which = [f"{named(row)} at {percent(row['cost'])} of the cost" for row in same[:1]]
        others = "" if best is None else text("budget.others", **best)
        which = which or ["nothing that was tried"]
        answer.append(text("budget.clusters", others=others, which=which[0], least=least))
    return answer


def budget_command(s: Study, row: dict[str, Any], steps: int, total: int) -> str:
    """A pairwise run with the steps and images of a row, of the same subset."""
    changes, subset = ["experiment=pairwise"], s.config.subset
    if row["steps"] != steps:
        changes += [f"attack.steps={row['steps']}", "attack.step_size=null"]
    assert s.measured is not None
    if row["images"] < total and "file" not in subset:
        classes = len({*s.measured.evaluation.subset.labels})
        share = (subset.fraction or 1) * row["images"] / total
        each = f"subset.per_class={max(1, row['images'] // classes)}"
        changes.append(each if subset.per_class else f"subset.fraction={share:.3g}")
    return command(*changes)


def budget_figure(rows: pl.DataFrame) -> Figure:
    """r, bias and clusters over the cost, a line for each number of steps."""
    parts: list[tuple[str, Sequence[Line]]] = []
    labels = {"r": "r with the reference", "bias": "bias (nats)", "clusters": "clusters (ARI)"}
    for column, label in labels.items():
        lines = []
        for (steps,), part in rows.sort("steps", "images").group_by("steps", maintain_order=True):
            y = part[column].to_numpy()
            low, high = (part[f"r_{e}"].to_numpy() if column == "r" else y for e in ("low", "high"))
            lines.append(Line(f"{steps} steps", part["cost"].to_numpy(), y, low, high))
        parts.append((label, lines))
    return lines_figure(parts, "cost (share of the reference's)", 2.6, shares=True)
