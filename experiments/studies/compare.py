"""Do scores depend on how they are measured? A reference matrix, and others of the same models.

Each other one is a definition: a file, or the run's config with some values changed.

- experiment=compare: two runs or files. Also where they differ most (differences, models.csv).
- experiment=attacks: other attacks, or scores of one direction (Appendix G; Fig. G.1, G.2).
- experiment=classes: images of one class and of all others, and which classes a pair's transfers
  are in.
- experiment=precision: other precisions, of crafting and of targets, beside another seed, whose
  effect is chance alone.
- experiment=budget: fewer, longer steps (attack.step_size=null), and what they cost: r says whether
  the order of pairs stays, the mean difference whether the level does.

On the 12 digits members (500 images): PGD-50 and PGD-10 r = 0.98, two-sided and one-sided r = 0.75
(66 pairs, 132 directions; both Mantel p <= 0.0001). Precisions: experiments/results/speed.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
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
from omegaconf import DictConfig, ListConfig

from experiments.cli import sat69
from experiments.cli.components import bases_of
from experiments.cli.finish import terminal
from experiments.cli.measured import Measured
from experiments.cli.members import build_members
from experiments.cli.runs import command
from experiments.cli.setting import build_attack, build_settings, on_cpu
from experiments.cli.study import Study, check_file, study
from experiments.cli.values import changed, naming
from netkin import similarity
from netkin.analysis import matrix, noise, statistics
from netkin.analysis.clusters import hierarchy
from netkin.analysis.confounders import change, nearest
from netkin.analysis.correlation import Definition, correlate, note, sentence
from netkin.analysis.matrix import Matrix, off_diagonal, pair_values, position_of
from netkin.analysis.noise import Sampled
from netkin.analysis.statistics import FEWEST
from netkin.analysis.verdict import Verdict, verdict
from netkin.attacks import PGD, Attack
from netkin.data.classes import class_words
from netkin.data.tables import read_text
from netkin.errors import UserError, and_more, check_known
from netkin.report.heatmap import heatmap_figure
from netkin.report.plots import Marks, ranked_figure, scatter
from netkin.report.sentences import Sentences
from netkin.report.study import Section
from netkin.report.style import panels, style
from netkin.results import Results
from netkin.run import check_sources
from netkin.similarity import Outcomes
from netkin.zoo import execution
from netkin.zoo.execution import PRECISIONS, TARGET_PRECISIONS, Execution, check_execution

CLASSES_SHOWN = 40
SCHEMA: dict[str, Any] = {"a": pl.String, "b": pl.String, "score": pl.Float64}
SCHEMA |= {"fooling_rate": pl.Float64, "class": pl.String}
SCHEMA |= {"class_rate": pl.Float64, "classes": pl.Float64}
text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    kinds = {"compare": files, "attacks": attacks, "precision": precision, "budget": budget}
    kinds["classes"] = classes
    kinds[config.experiment.name](config)


def measured_under(
    s: Study, config: DictConfig, attack: Attack | None = None, sources: Sequence[str] | None = None
) -> tuple[Results, Outcomes]:
    """The study's models, or its sources alone, under the attack (unless given) and the precisions
    of another config."""
    assert s.measured is not None
    r = s.measured.run.under(
        attack=attack or build_attack(config),
        craft_precision=config.hardware.craft_precision,
        target_precision=config.transfer.precision,
    )
    r = replace(r, settings=replace(r.settings, sources=sources, watch=None))
    return r.results, r.measure()


def defined(
    s: Study, name: str, outcomes: Outcomes, sources: Sequence[str] | None = None
) -> Definition:
    """The scores of outcomes: of both directions, or of the sources' images alone."""
    one_sided = sources is not None
    sampled = noise.sampled_scores(outcomes, s.config.score.bootstrap, one_sided=one_sided)
    if sources is not None:
        for part in sampled[:3]:
            part[..., ~np.isin(outcomes.members, sources), :] = np.nan
    return Definition(name, sampled.values, sampled)


# Two files or runs


def files(config: DictConfig) -> None:
    """experiment=compare: two runs, CSV files, or the published matrix."""
    a, b = str(config.a), str(config.b)
    first = config.copy()
    first.similarity = config.similarity if a == "sat69" else {"file": scores_file("a", a)}
    with study(first) as s:
        if b == "sat69":
            theirs, _ = sat69.load(config)
        else:
            theirs = matrix.read(scores_file("b", b), bool(config.symmetrise))
        common = tuple(name for name in s.names if name in theirs.names)
        if len(common) < 3:
            raise UserError(
                f"{a} and {b} share {len(common)} models, expected 3 or more "
                f"({and_more(s.names, 3)}; {and_more(theirs.names, 3)})"
            )
        whole = list(zip(told_apart(a, b), (s.matrix, theirs), strict=True))
        pair = [Definition(name, m.of(common).scores) for name, m in whole]
        alone = [(name, len(m.names) - len(common)) for name, m in whole]
        notes = [text("only", n=n, name=name) for name, n in alone if n]
        found = [agreement(each) for each in (a, b)]
        columns = dict[str, float]()
        if (one := found[0]) is None or (other := found[1]) is None:
            notes.insert(0, text("unknown_noise"))
        elif one[1] == other[1]:
            notes.insert(0, text("same_images"))
        else:
            top = float(np.sqrt(one[0].reliability * other[0].reliability))
            r = statistics.pearson(*statistics.paired(pair[0].scores, pair[1].scores)).r
            columns = {"noise_ceiling": top, "r_without_noise": float(np.clip(r / top, -1, 1))}
        compare(s, common, [(pair[0], pair[1])], [columns], notes)


def agreement(given: str) -> tuple[noise.Agreement, str] | None:
    """How far random halves of a run's images agree, and which images these are, by the
    agreement.csv of its folder; None where there is none."""
    file = Path(given).expanduser() / "agreement.csv"
    if given == "sat69" or not file.is_file():
        return None
    table = read_text(file)
    images, _ = table["r"].cast(pl.Float64, strict=False).fill_null(np.nan)  # "" is none
    return (noise.Agreement(images), table["images"][0]) if images > 0 else None


def told_apart(a: str, b: str) -> tuple[str, str]:
    """Two paths by the ends of them that differ: a/run/x.csv and b/run/x.csv as a and b, and as
    they are if they are the same."""
    one, two = (list(Path(given).expanduser().parts) for given in (a, b))
    while len(one) > 1 < len(two) and one[-1] == two[-1]:
        one, two = one[:-1], two[:-1]
    return (one[-1], two[-1]) if one[-1] != two[-1] else (a, b)


def scores_file(key: str, given: str) -> Path:
    """The file of scores that a key names: the similarity.csv of a run's folder, or a CSV file."""
    path = Path(given).expanduser()
    check_file(key, given)
    if not path.is_dir():
        return path
    if not (path / "similarity.csv").is_file():
        raise UserError(
            f"{key}={given} has no similarity.csv; name the folder of a run of "
            "experiment=pairwise, a CSV file of scores, or sat69"
        )
    return path / "similarity.csv"


# Attacks


def attacks(config: DictConfig) -> None:
    """Other attacks, or one direction."""
    if config.one_sided:
        with study(config) as s:
            assert s.measured is not None
            there = defined(s, "one-sided", s.measured.outcomes, s.names)
            # The two-sided score contains the one-sided one; the other direction does not.
            assert there.sampled is not None
            values, draws, halves = (part.swapaxes(-1, -2) for part in there.sampled[:3])
            turned = Sampled(values, draws, halves)
            back = Definition("the other direction", turned.values, turned)
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
    for each in listed.values():  # mistakes, before any work
        settings = build_settings(config, terminal(), lambda _: None, members, each)
        check_sources(replace(settings, sources=None if each is attack else sources))
    with study(config, attack) as s:
        assert s.measured is not None
        measured = {label: s.measured.outcomes}
        for name, each in others:
            _, measured[name] = measured_under(s, config, each, sources)
        success = [
            (name, model, float(outcomes.per_image(i, i).mean()))
            for name, outcomes in measured.items()
            for i, model in enumerate(s.names)
            if sources is None or model in sources
        ]  # a weak attack makes all models look dissimilar
        schema = ["attack", "model", "white_box_success"]
        s.outputs.table("white_box", pl.DataFrame(success, schema=schema, orient="row"))
        reference, *rest = (defined(s, *item, sources) for item in measured.items())
        compare(s, s.names, [(reference, other) for other in rest])


def listed_attacks(config: DictConfig) -> dict[str, Attack]:
    """The attacks to compare, by label.

    Each is composed as by `attack=option`. Overrides of attack.* on the command line apply to each
    attack that has the setting; an entry's own settings take precedence.
    """
    entries = config.attacks
    if not isinstance(entries, ListConfig) or len(entries) < 2:
        example = "[pgd,{attack: pgd, steps: 10}]"
        raise UserError(f"attacks must list two or more, such as {example}, got {entries}")
    overrides = HydraConfig.get().overrides.task
    others = [each for each in overrides if not each.startswith(("attack", "+attack"))]
    typed = [each for each in overrides if each.startswith("attack.")]
    parsed = OverridesParser.create().parse_overrides(typed)
    shared = {each.key_or_group.removeprefix("attack."): each.value() for each in parsed}
    found: dict[str, Attack] = {}
    for entry in entries:
        given = dict(entry) if isinstance(entry, DictConfig) else {"attack": entry}
        option = given.pop("attack", None)
        if not isinstance(option, str):
            expected = "an option or {attack: option, ...}"
            raise UserError(f"an entry of attacks is {expected}, got {entry}")
        listed = ", ".join(f"{key} = {value}" for key, value in given.items())
        label = f"{option} ({listed})" if given else option
        if "name" in given and str(given["name"]) not in found:
            label = str(given["name"])  # of another package's attack
        if label in found:
            raise UserError(f"attacks lists {label} twice")
        composed = compose("evaluate", overrides=[*others, f"attack={option}"])
        known = [str(key) for key in composed.attack]
        for key in given:
            check_known(key, known, f"attack {option} has no setting {key!r}")
        values = {k: v for k, v in shared.items() if k.split(".")[0] in known} | given
        composed = changed(composed, {f"attack.{key}": value for key, value in values.items()})
        attack = build_attack(composed, option)
        for other, earlier in found.items():
            if earlier.identity == attack.identity:
                raise UserError(
                    f"attacks: {other} and {label} are the same attack, since attack.* on the "
                    "command line applies to each; choose others with attacks=[...]"
                )
        found[label] = attack
    return found


# Precisions and a seed


def precision(config: DictConfig) -> None:
    """The run in other precisions and from another seed."""
    crafting, targets = precisions(config)
    if "seed" not in config.attack:
        raise UserError("experiment=precision needs an attack with a seed, such as attack=pgd")
    if config.seed == config.attack.seed:
        raise UserError(f"seed must differ from attack.seed ({config.attack.seed})")
    others = {name: {"hardware.craft_precision": name} for name in crafting}
    others[f"seed {config.seed}"] = {"attack.seed": config.seed}
    others |= {f"transfer {name}": {"transfer.precision": name} for name in targets}
    with study(config) as s:
        assert s.measured is not None
        m, eps_s = s.measured, config.score.eps_s
        intervals = similarity.pairs(m.outcomes, eps_s)
        low, high = intervals.select("low", "high").to_numpy().T

        def paper(name: str, outcomes: Outcomes) -> Definition:
            scores = similarity.matrix(outcomes, eps_s)
            return defined(s, name, outcomes)._replace(scores=scores)

        reference = paper(config.hardware.craft_precision, m.outcomes)
        comparisons, columns = [], []
        for name, values in others.items():
            s.console.print(f"\n{name}")
            results, outcomes = measured_under(s, changed(config, values))
            comparisons.append((reference, paper(name, outcomes)))
            row = {"mean_half_width": float((high - low).mean() / 2)}
            row["inside_interval"] = inside(intervals, comparisons[-1][1].scores)
            columns.append(row | differing(m, results))
        compare(s, s.names, comparisons, columns)


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
        check_known(name, PRECISIONS, f"precisions has no {name!r}")
        with naming({"precision": "precisions"}):
            check_execution(Execution(name), gpu)
        if name == present:
            raise UserError(f"precisions names {name}, which is the run's own: leave it out")
    targets = {*chosen} - {config.transfer.precision}
    return list(dict.fromkeys(chosen)), [name for name in TARGET_PRECISIONS if name in targets]


def differing(ours: Measured, theirs: Results) -> dict[str, float]:
    """The shares of stored pixels, of predictions on them, and of outcomes, that differ.

    Predictions are those of all pairs of members on the images that both classify correctly, which
    are the same in both.
    """
    names = [member.name for member in ours.members]
    pixels, rows = np.zeros(2), np.zeros(3)
    for member in ours.members:  # one target at a time: all rows of a large zoo fill the memory
        for shard in range(len(ours.evaluation.shards)):
            one, other = (each.adversarial(member, shard)[0] for each in (ours.results, theirs))
            pixels += int(torch.count_nonzero(one != other)), one.numel()
        one, other = (r.outcome_store.read(member.name, names) for r in (ours.results, theirs))
        both = one.join(other, on=["source", "target", "image_id"], suffix="_other", validate="1:1")
        assert both.height == one.height == other.height
        differ = [(both[c] != both[f"{c}_other"]).sum() for c in ("prediction", "fooled")]
        rows += [both.height, *differ]
    return {
        "differing_pixels": float(pixels[0] / pixels[1]),
        "differing_predictions": float(rows[1] / rows[0]),
        "differing_outcomes": float(rows[2] / rows[0]),
    }


def inside(intervals: pl.DataFrame, scores: NDArray) -> float:
    """The share of pairs whose scores, [N, N], are inside intervals of `similarity.pairs`."""
    low, high = intervals.select("low", "high").to_numpy().T
    values = scores[np.triu_indices(len(scores), k=1)]
    return float(((low <= values) & (values <= high)).mean())


# Fewer steps


def budget(config: DictConfig) -> None:
    """Fewer, longer steps of the attack."""
    given, attack = list(config.budget.steps), build_attack(config)
    if not isinstance(attack, PGD):
        needed = "an attack of steps, such as pgd"
        raise UserError(f"experiment=budget takes {needed}, got {attack.name}")
    steps = attack.steps
    fewer = sorted({n for n in given if n < steps})
    if not fewer:
        raise UserError(f"budget.steps must have a number below attack.steps={steps}, got {given}")
    with study(config) as s:
        assert s.measured is not None
        own = s.measured.outcomes
        intervals = similarity.pairs(own, config.score.eps_s)
        reference, comparisons, columns = defined(s, f"{steps} steps", own), [], []
        for n in fewer:
            values = {"attack.steps": n, "attack.step_size": None}
            _, outcomes = measured_under(s, changed(config, values))
            other = defined(s, f"{n} steps", outcomes)
            comparisons.append((reference, other))
            row = {"steps": n, "cost": passes(outcomes, n) / passes(own, steps)}
            row["inside_interval"] = inside(intervals, other.scores)
            row["clusters_rand"] = change(reference.scores, other.scores).rand or 0.0
            columns.append(row)
        compare(s, s.names, comparisons, columns)


def passes(outcomes: Outcomes, steps: int) -> float:
    """The cost of outcomes in forward passes of one image: crafting, whose steps have a forward and
    a backward pass, which counts as two, and transfer."""
    correct = outcomes.correct.astype(float)
    return float(correct.sum() * steps * 3 + (correct @ correct.T).sum())


# Classes of images


def classes(config: DictConfig) -> None:
    """The matrix on the images of one class and on those of the others, and pairs by class."""
    with study(config) as s:
        assert s.measured is not None
        outcomes, subset = s.measured.outcomes, s.measured.evaluation.subset
        label_of = dict(zip(subset.ids, subset.labels, strict=True))
        labels = np.array([label_of[image] for image in outcomes.image_ids])
        words = class_words(s.measured.evaluation.images.classes)
        present = np.unique(labels)
        inside = (labels == present[:, None]).astype(float)  # [C, images]
        if len(present) < 2 or len(s.names) < 2:
            raise UserError("experiment=classes needs images of 2 classes or more")
        named = [words[label] for label in present]
        table = s.outputs.table("classes", class_table(outcomes, inside, named))
        pairs = s.outputs.table("pairs", carried(outcomes, inside, named))
        found, shown = noise.agreement(outcomes, labels.tolist()), s.config.classes.pairs
        drawing = ranked_figure(
            table["class"][:CLASSES_SHOWN].to_list(),
            {"": table.select("fooling_rate").head(CLASSES_SHOWN).to_numpy()},
            "mean fooling rate of all pairs",
        )
        picture = s.outputs.figure("classes", drawing, table, text("classes.caption"))
        most, least = table.row(0, named=True), table.row(-1, named=True)
        answer = [text("classes.range", n=len(present), most=most, least=least)]
        if not np.isnan(found.classes):
            answer.insert(0, text("classes.halves", n=len(present), **found._asdict()))
        answer.append(text("classes.nearest", **pairs.row(0, named=True)))
        apart = pairs.drop_nulls("class").sort(
            pl.col("class_rate") - pl.col("fooling_rate"), descending=True
        )
        counts, first = {"found": apart.height, "n": pairs.height}, apart.head(1).to_dicts()
        answer += [text("classes.most", **counts, **row) for row in first] or [text("classes.none")]
        tables = {"The most similar pairs": pairs.head(shown)}
        tables["Pairs that one class carries most"] = apart.head(shown)
        s.finish(
            text("classes.title", n=len(s.names)),
            f"Scores of the same models on images of single classes: {s.source}.",
            answer,
            [Section("Classes", (), {}, [picture]), Section("Pairs", (), tables)],
        )


def class_table(
    outcomes: Outcomes, inside: NDArray[np.float64], named: Sequence[str]
) -> pl.DataFrame:
    """A row a class, by its mean fooling rate over pairs: class, images, fooling_rate, and r, of
    smoothed scores on its images and on those of the other classes.

    `inside` [C, images] has 1 for the images of each class.
    """
    sums, halves = np.zeros((2, len(inside))), np.stack([inside, 1 - inside], axis=1)
    r = noise.agreeing(outcomes, halves.reshape(2 * len(inside), -1))
    for a, (k, n) in transfers(outcomes, inside):
        rate = np.divide(k, n, out=np.zeros_like(k), where=n > 0)
        sums += np.stack([rate[:a].sum(axis=0), (n[:a] > 0).sum(axis=0)])
    columns = {"class": named, "images": inside.sum(axis=1).astype(int)}
    table = pl.DataFrame(columns).with_columns(fooling_rate=sums[0] / np.maximum(sums[1], 1), r=r)
    return table.fill_nan(None).sort("fooling_rate", descending=True, maintain_order=True)


def transfers(
    outcomes: Outcomes, inside: NDArray[np.float64]
) -> Iterator[tuple[int, tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """Of each model a with the models before it, by class, [a, C] each: how many adversarial images
    transfer (of one direction: half), and how many images both classify correctly."""
    for a in range(len(outcomes.members)):
        before = slice(0, max(a, 1))
        both = similarity.both_correct(outcomes, a, before)
        z = (outcomes.fooled[a, before].astype(float) + outcomes.fooled[before, a]) / 2
        yield a, ((z * both) @ inside.T, both @ inside.T)


def carried(outcomes: Outcomes, inside: NDArray[np.float64], named: Sequence[str]) -> pl.DataFrame:
    """A row a pair, the most similar first: a, b, score (smoothed), the class with the highest
    fooling rate beyond the pair's own, certainly (by the 95% interval of its rate, corrected for
    the number of classes), or null; its rate, the pair's rate; and in how many classes the pair's
    transfers are: the inverse of the sum of their squared shares (1 to C)."""
    names, of, parts = outcomes.members, np.array(named), []
    for a, (k, n) in transfers(outcomes, inside):
        total, images = k.sum(axis=1)[:a], n.sum(axis=1)[:a]
        rate, at = np.divide(k, n, out=np.zeros_like(k), where=n > 0)[:a], np.arange(a)
        low, _ = similarity.exact_limits(rate, np.maximum(n[:a], 1), similarity.ALPHA / len(named))
        best = rate.argmax(axis=1)
        squared = np.divide(
            total**2, (k[:a] ** 2).sum(axis=1), out=np.full(a, np.nan), where=total > 0
        )
        certain = low[at, best] > total / images
        columns = {
            "score": similarity.smoothed(total, images),
            "fooling_rate": total / images,
            "class": [c if own else None for c, own in zip(of[best], certain, strict=True)],
            "class_rate": rate[at, best],
            "classes": squared,
        }
        parts.append(pl.DataFrame({"a": list(names[:a]), "b": [names[a]] * a, **columns}, SCHEMA))
    table = pl.concat(parts).fill_nan(None)
    return table.sort(["score", "a", "b"], descending=[True, False, False])


# The page


def compare(
    s: Study,
    names: tuple[str, ...],
    comparisons: Sequence[tuple[Definition, Definition]],
    columns: Sequence[dict[str, float]] = (),
    left_out: Sequence[str] = (),
) -> None:
    """The scatters, the table of correlations, where two files differ most, and the page.

    Comparisons of a reference with another definition each, of the N models that are named, have
    further `columns` of the table each; `left_out` are sentences on models that one file has alone.
    """
    name, permutations = s.config.experiment.name, statistics.PERMUTATIONS
    if name in ("compare", "attacks"):
        permutations = s.config.get("compare", s.config).permutations
    rows = [
        correlate(*each, permutations) | changes(*each) | more
        for each, more in zip(comparisons, columns or [{}] * len(comparisons), strict=True)
    ]
    table = s.outputs.table("correlations", pl.DataFrame(rows, infer_schema_length=None))
    for row in rows:
        if not np.isnan(row["r"]):
            key = f"{name}/r" if name == "compare" else f"{name}/r/{row['other']}"
            s.tracker.summary({key: row["r"]})
    parts = [pairs_table(names, *each) for each in comparisons]
    pairs = pl.concat(parts)
    if name == "compare":
        pairs = pairs.sort(pl.col("difference").abs(), descending=True)
    picture = s.outputs.figure(name, figure(parts, rows), pairs, text("caption"))
    sections = [Section("Scores against scores", (), {"Correlations": table}, [picture])]
    answers = {"precision": precision_answer, "budget": partial(budget_answer, s)}
    answer = answers.get(name, partial(general_answer, name))(rows)
    if name == "compare":
        section, differ = differences(s, names, *comparisons[0], pairs)
        sections.append(section)
        answer.insert(1, differ)
    described = [f"{first.name} and {other.name}" for first, other in comparisons]
    s.finish(
        text(f"{name}.title", n=len(names), what=described[0]),
        f"The same pairs scored by {', '.join(described)}: {s.source}.",
        [*answer, *left_out],
        sections,
    )


def changes(first: Definition, other: Definition) -> dict[str, float]:
    """How scores change, in nats: columns of the table, none where one of them is one-sided. The
    mean difference has its 95% interval over images."""
    x, y, one, two = first.scores, other.scores, first.sampled, other.sampled
    if not all(np.allclose(m, m.T, equal_nan=True) for m in (x, y)):
        return {}
    difference = off_diagonal(y - x)
    row = {
        "mean_difference": float(difference.mean()),
        "mean_absolute_difference": float(np.abs(difference).mean()),
        "largest_difference": float(np.abs(difference).max()),
    }
    if one is not None and two is not None:
        row["mean_difference"] = float(pair_values(two.values - one.values).mean())
        drawn = pair_values(two.draws - one.draws).mean(axis=1)
        row["mean_low"], row["mean_high"] = similarity.interval(drawn)
    return row


def pairs_table(names: tuple[str, ...], first: Definition, other: Definition) -> pl.DataFrame:
    """A row a pair that both have: a, b, reference, other (definitions), s_reference, s_other, and
    difference, the first less the second (nats)."""
    rows, columns = at = statistics.pair_positions(first.scores, other.scores)
    x, y, of = first.scores[at], other.scores[at], np.array(names)
    both = {"reference": pl.lit(first.name), "other": pl.lit(other.name)}
    table = pl.DataFrame({"a": of[rows], "b": of[columns]}).with_columns(**both)
    table = table.with_columns(s_reference=x, s_other=y, difference=x - y)
    return table.filter(pl.col("difference").is_not_nan())


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
        labels = [f"s, {row[which]} (nats)" for which in ("reference", "other")]
        names = pairs["b"].to_list() if pairs["a"].n_unique() == 1 < pairs.height else None
        line = statistics.trend(x, y) if row["models"] >= FEWEST else None
        equal = Marks(identity="equal scores")
        scatter(ax, x, y, *labels, names=names, trend=line, text=note(row), marks=equal)
    return drawing


def general_answer(question: str, rows: list[dict]) -> list[str]:
    """Whether definitions agree, by the comparison with the lowest correlation; and each one."""
    known = [row for row in rows if not np.isnan(row["r"])]
    each = [f"{row['reference']} and {row['other']}: {sentence(row)}" for row in rows]
    if not known or known[0]["models"] < FEWEST:
        return [text(f"{question}.few", models=rows[0]["models"]), *each]
    worst = min(known, key=lambda row: row["r"])
    decision, without = agree(worst)
    share = text("share", share=worst["r"] ** 2, **worst)
    if without > worst["r"]:
        share += text("without_noise", share=without**2, **worst)
    return [text(question, decision, share=share), *each]


def agree(row: dict[str, Any]) -> tuple[Verdict, float]:
    """Whether two definitions agree, by their row of `correlate`, and the r that decides: without
    noise of the images where that is known, and over models as uncertain as r, in proportion."""
    r, without, alike = row["r"], row["r_without_noise"], statistics.ALIKE
    if without is None or not without > r > 0:
        without = r
    ends = row["models_low"], row["models_high"]
    low, high = (None if end is None else min(end * without / r, 1.0) for end in ends)
    p = row["p"] if without > alike else None  # that r is 0, which would be a No, too
    return verdict(without, (low, high), p, threshold=alike), without


def differences(
    s: Study, names: tuple[str, ...], a: Definition, b: Definition, pairs: pl.DataFrame
) -> tuple[Section, str]:
    """Where two matrices differ: a heatmap, the models and the pairs, sorted, that differ most."""
    n = len(names)
    off = ~np.eye(n, dtype=bool)
    difference = np.where(off, a.scores - b.scores, 0.0)
    near_a, near_b = nearest(a.scores), nearest(b.scores)
    models = pl.DataFrame(
        {
            "model": names,
            "mean_difference": [float(difference[i, off[i]].mean()) for i in range(n)],
            "r": [statistics.pearson(a.scores[i, off[i]], b.scores[i, off[i]]).r for i in range(n)],
            "nearest_in_a": [names[i] for i in near_a],
            "nearest_in_b": [names[i] for i in near_b],
        }
    ).sort(pl.col("mean_difference").abs(), descending=True)
    s.outputs.table("models", models)
    base, label = dict(zip(s.names, bases_of(s), strict=True)), "difference of s (nats)"
    bases, order = [base[each] for each in names], hierarchy(a.scores).order
    drawing = heatmap_figure(difference, names, bases, label, signed=True, order=order)
    table, caption = Matrix(names, difference).table(), text("difference", a=a.name, b=b.name)
    picture = s.outputs.figure("differences", drawing, table, caption)
    mean, first = float(pairs["difference"].to_numpy().mean()), models.row(0, named=True)
    listed = [
        f"{row['b']} and {row['a']} ({row['s_reference']:.3f} and {row['s_other']:.3f})"
        for row in pairs.head(3).iter_rows(named=True)
    ]
    values = {"a": a.name, "b": b.name, "mean": abs(mean), "pairs": ", ".join(listed)}
    values |= {"model": first["model"], "most": first["mean_difference"], "models": n}
    direction, changes = "higher" if mean >= 0 else "lower", int((near_a != near_b).sum())
    differ = text("differ", direction=direction, changed=changes, **values)
    if not difference.any():
        differ = text("equal")
    shown = s.config.compare.pairs
    short = pairs.head(shown).drop("reference", "other")
    tables = {f"The {shown} pairs that differ most": short, "Models": models}
    return Section("Where they differ", (), tables, [picture]), differ


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


def cheapest(rows: Sequence[dict], options: Any) -> dict[str, Any] | None:
    """The cheapest row whose matrix is the reference's within the tolerance; None without one."""
    good = [
        row
        for row in rows
        if row["r"] >= options.least_r
        and abs(row["mean_difference"]) <= options.most_bias
        and row["inside_interval"] >= options.least_inside
    ]
    return min(good, key=lambda row: row["cost"], default=None)


def budget_answer(s: Study, rows: list[dict]) -> list[str]:
    """The verdict, the command that uses the cheapest setting, and what each does to scores."""
    options = s.config.budget
    best, asked = cheapest(rows, options), text("budget.asked", **options)
    answer = [text("budget.No", asked=asked)]
    if best is not None:
        changes = (f"attack.steps={best['steps']}", "attack.step_size=null")
        use = text("budget.use", command=command("experiment=pairwise", *changes))
        answer = [text("budget.Yes", asked=asked, **best), use]
    shifts = [text("budget.shift", **row) for row in rows]
    return [*answer, text("budget.level", shifts="; ".join(shifts))]
