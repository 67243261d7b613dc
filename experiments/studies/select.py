"""Which models to combine into an ensemble, and which teachers to distil from? (Sec. 4.1 and 4.2.)

Ensembles are ranked

- with stored logits by predicted error: the mean error of the members, reduced by an ERR that is
  fitted on sampled ensembles: linear in their mean similarity where that predicts ensembles with
  a model that was held out better, else constant;
- with accuracies alone (`similarity=sat69`, `select.accuracies`) by the error expected from them;
  beside it the least similar of those that accuracies cannot tell apart. Nothing is measured;
- without either by similarity.

`select.student=NAME` ranks teachers of a student. experiment=teachers chooses teachers for a study
of distillation. Writes select_ensembles, select_teachers or teachers (figures and tables).

On the 12 digits members (500 images, PGD-50) similarity adds nothing to the members' mean error: on
ensembles of 3 with a held-out model predicted errors are wrong by 0.179 points with it and by 0.173
without.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from experiments.cli.components import BASE, components_of, stand_in
from experiments.cli.members import build_members
from experiments.cli.runs import command, with_root
from experiments.cli.study import Study, study
from experiments.cli.values import naming_group, resolved
from experiments.studies.ensemble import ensembles_wrong
from netkin.analysis import ensemble, select
from netkin.analysis.matrix import Matrix, pair_index, position_of
from netkin.analysis.select import (
    LEAST,
    LIKELY,
    MOST,
    POWER,
    STUDENTS_R,
    expected_error,
    mean_similarity,
)
from netkin.analysis.statistics import p_text, power
from netkin.analysis.verdict import verdict
from netkin.errors import UserError, and_more
from netkin.model import Model
from netkin.report.plots import Marks, ranked_figure, scatter_figure
from netkin.report.sentences import Sentences
from netkin.report.study import Picture, Section
from netkin.report.style import FULL
from netkin.report.text import count
from netkin.run import Run
from netkin.similarity import exact_limits

Advice = tuple[Section, list[str]]
"""A section of the page, and its part of the answer."""
SHOWN = 40  # teachers in a figure
text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    with study(config) as s:
        (choose_teachers if config.experiment.name == "teachers" else choose)(s)


def choose(s: Study) -> None:
    """experiment=select: ensembles, and teachers of select.student."""
    options, known = s.config.select, logits_if_any(s)
    matrix = s.matrix if known is None else known[2]
    what = "select.include: the matrix"
    include = [position_of(name, matrix.names, what) for name in dict.fromkeys(options.include)]
    with naming_group("select", options):
        select.check_size(options.size, len(matrix.names), include)
        advice = by_accuracy(s, include) if known is None else by_logits(s, *known, include)
    ensembles, answer = advice
    sections, what = [ensembles], "to choose"
    if options.student is not None:  # the question is another, so ensembles are on the page
        ensembles = replace(ensembles, paragraphs=[*answer, *ensembles.paragraphs])
        section, answer = teacher_section(s)
        sections, what = [section, ensembles], f"as the teacher of {options.student}"
    title = f"Which of {len(matrix.names)} models {what}?"
    s.finish(title, f"Advice from the similarity of {s.source}.", answer, sections)


def logits_if_any(s: Study) -> tuple[Run, list[Model], Matrix] | None:
    """The members with stored logits, and their matrix; None where the matrix has other models, or
    the images of a published matrix are not here."""
    if s.measured is None:
        if s.published is not None and OmegaConf.is_missing(s.config.dataset, "root"):
            return None
        if not {member.name for member in build_members(s.config)} <= {*s.names}:
            return None
    from experiments.cli.measured import with_logits

    return with_logits(s)


# Ensembles


def by_logits(s: Study, r: Run, members: list[Model], matrix: Matrix, include: list[int]) -> Advice:
    """Ensembles by predicted error, with their measured errors."""
    options, scores, n, results = s.config.select, matrix.scores, len(members), r.results
    sizes, size = np.array([float(results.params(member)) for member in members]), options.size
    drawn, _ = ensemble.sample(range(n), size, size, options.samples, options.seed)
    sampled = np.array(drawn, dtype=np.intp).reshape(-1, size)
    wrong = partial(ensembles_wrong, s, results, members)
    errors, sampled_errors = (wrong(g).mean(axis=1) for g in ([(i,) for i in range(n)], drawn))
    of = errors, sampled, sampled_errors
    found = select.held_out_models(scores, *of)
    helps = found is not None and found["gain"] > 0
    ways = {way: select.fit_prediction(scores * way, *of) for way in (True, False)}
    limit = options.max_params
    ranked = {way: select.search(ways[way], n, size, include, sizes, limit) for way in ways}
    best, predict, other = ranked[helps][: options.top], ways[helps], ranked[not helps][0]
    *measured, wrong_other = wrong([*best.tolist(), other.tolist()])
    measured = np.stack(measured)
    rates = measured.mean(axis=1)
    low, high = exact_limits(rates, np.full(len(rates), measured.shape[1]))
    columns = {
        "measured_error": rates,
        "measured_low": low,
        "measured_high": high,
        "predicted_error": predict(best),
        "mean_member_error": errors[best].mean(axis=1),
        "best_member_error": errors[best].min(axis=1),
        "params": sizes[best].sum(axis=1).astype(int),
    }
    others = mean_similarity(scores, sampled), 100 * sampled_errors, "sampled ones"
    quality = text("quality", intercept=predict.intercept, slope=predict.slope, n=len(sampled))
    chosen, way = text("adds.way", str(helps)), text("adds.way", str(not helps))
    at = mean_similarity(scores, other[None])[0], 100 * wrong_other.mean()
    kind = "same" if {*other} == {*best[0]} else "other"
    marks = {} if kind == "same" else {text("marked.way", way=way): at}
    section, first = ensemble_section(s, matrix, best, columns, others, quality, marks=marks)
    member = int(best[0][errors[best[0]].argmin()])
    won, lost, p = ensemble.only_one_wrong(measured[0], wrong([(member,)])[0])
    beside = {"member": matrix.names[member], "won": won, "lost": lost, "p": p_text(p)}
    adds = text("adds.few")
    if found is not None:
        decided = verdict(found["gain"], (found["low"], found["high"]))
        points = {k: 100 * found[k] for k in ("error", "error_alone", "gain", "low", "high")}
        adds = text("adds.found", decided, **{**found, **points})
    names = " + ".join(matrix.names[i] for i in other)
    values = {"chosen": chosen, "way": way, "other": names, "error": wrong_other.mean()}
    return section, [
        text("measured", images=measured.shape[1], count=count(first["params"]), **first),
        text("better", verdict=verdict(won - lost, p=p), **beside),
        text("adds.begin") + adds + text(f"adds.{kind}_choice", **values),
    ]


def by_accuracy(s: Study, include: list[int]) -> Advice:
    """Ensembles by expected error, and the least alike of those that it cannot tell apart."""
    options, matrix = s.config.select, s.matrix
    accuracy = None if s.published is None else s.published.accuracy
    sizes = None if s.published is None else s.published.params
    if options.accuracies is not None:
        accuracy = select.read_accuracies(options.accuracies, matrix.names)
    limit, tolerance = options.max_params, options.tolerance
    if limit is not None and sizes is None:
        raise UserError(
            "select.max_params needs the models' sizes: use similarity=sat69, which has them, or "
            "name the models in model.members, with their logits in the store"
        )
    if accuracy is None:
        return by_diversity(s, include)
    use = np.flatnonzero(~np.isnan(accuracy))
    if gone := [i for i in include if i not in use]:
        raise UserError(f"select.include: {matrix.names[gone[0]]} has no known accuracy")
    errors, some = 1 - accuracy, None if sizes is None else sizes[use]
    within = [int(np.searchsorted(use, i)) for i in include]
    rank = partial(expected_error, errors[use])
    groups = use[select.search(rank, len(use), options.size, within, some, limit)]
    expected, similarity = expected_error(errors, groups), mean_similarity(matrix.scores, groups)
    order, near = select.least_similar_of_the_best(expected, similarity, tolerance)
    best, least = groups[: options.top], order[0]
    sampled = np.random.default_rng(options.seed).permutation(len(groups))[: options.samples]
    columns = {
        "expected_error": expected_error(errors, best),
        "expected_low": expected_error(errors, best, LEAST),
        "expected_high": expected_error(errors, best, MOST),
        "mean_member_error": errors[best].mean(axis=1),
        "best_member_error": errors[best].min(axis=1),
        **({} if sizes is None else {"params": sizes[best].sum(axis=1).astype(int)}),
    }
    others = similarity[sampled], 100 * expected[sampled], "at random"
    method = text("method", likely=LIKELY, least=LEAST, most=MOST)
    marks = {}
    if least:
        marks[text("marked.least")] = float(similarity[least]), float(100 * expected[least])
    section, first = ensemble_section(s, matrix, best, columns, others, method, marks=marks)
    chosen, other = (
        ", ".join(f"{matrix.names[i]} ({accuracy[i]:.1%})" for i in group)
        for group in (best[0], groups[least])
    )
    values = {"near": near, "points": 100 * tolerance, "other": first["mean_similarity"]}
    values |= {"chosen": chosen, "least": other}
    values |= {"error": expected[least], "similarity": similarity[least]}
    answer = [
        text("expected", **first),
        text("other_choice" if least else "same_choice", **values),
        cost(s, groups[least], best[0]),
        text("adds.begin") + text("adds.unknown"),
    ]
    if len(use) < len(matrix.names):
        left = [name for name, v in zip(matrix.names, accuracy, strict=True) if np.isnan(v)]
        answer.append(text("left_out", models=and_more(left)))
    if s.published is not None:
        members = ",".join(matrix.names[i] for i in best[0])
        measure = command("experiment=ensemble", "dataset=imagenet", f"model.members=[{members}]")
        answer.append(text("measure", command=with_root(measure)))
    return section, answer


def by_diversity(s: Study, include: list[int]) -> Advice:
    """Ensembles by mean similarity alone; no error is expected."""
    options, scores = s.config.select, s.scores
    ranked = select.search(partial(mean_similarity, scores), len(s.names), options.size, include)
    rows, columns = pair_index(options.size)
    closest = scores[ranked[:, rows], ranked[:, columns]].max(axis=1)
    some = np.random.default_rng(options.seed).permutation(len(ranked))[: options.samples]
    mean, of_best = mean_similarity(scores, ranked), {"closest_pair": closest[: options.top]}
    others = mean[some], closest[some], "at random"
    section, first = ensemble_section(s, s.matrix, ranked[: options.top], of_best, others)
    diverse = text("diverse", size=options.size, mean=mean.mean(), **first)
    return section, [diverse, text("no_accuracies")]


def ensemble_section(
    s: Study,
    matrix: Matrix,
    groups: NDArray[np.intp],
    columns: dict[str, NDArray],
    sampled: tuple[NDArray, NDArray, str],
    *paragraphs: str,
    marks: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[Section, dict]:
    """The most promising ensembles [G, k] among sampled ones, and the first one's row of the table.

    The figure has the first of the columns, and of sampled ones the mean similarity, that column
    in the figure's unit, and how they were drawn; `paragraphs` say what is known of the method.
    The figure marks the first one, and those of `marks`, (x, y) by their name.
    """
    x, values, how = sampled
    table = pl.DataFrame(
        {
            "rank": range(1, len(groups) + 1),
            "models": [" + ".join(matrix.names[i] for i in group) for group in groups],
            "mean_similarity": mean_similarity(matrix.scores, groups),
            **columns,
        }
    )
    column, size = next(iter(columns)), s.config.select.size
    scale, label, best = 1, "closest pair (nats)", "least similar"
    if column.endswith("_error"):
        scale, label = 100, f"{column.removesuffix('_error')} top-1 error (%)"
        best = "most promising"
    x = np.r_[x, table["mean_similarity"].to_numpy()]
    y = np.r_[values, scale * table[column].to_numpy()]
    groups_of = ["others"] * len(values) + [best] * table.height
    pairs, first = "mean similarity of the pairs (nats)", table.row(0, named=True)
    at = first["mean_similarity"], scale * first[column]
    points = Marks(points={text("marked.choice", **first): at} | dict(marks or {}))
    drawing = scatter_figure(x, y, pairs, label, groups=groups_of, width=FULL, marks=points)
    counts = {"size": size, "sampled": len(values), "how": how, "shown": table.height, "best": best}
    picture = s.outputs.figure("select_ensembles", drawing, table, text("caption", **counts))
    tables = {f"The {best} ensembles": table}
    section = Section(f"Ensembles of {size}", [text("literature"), *paragraphs], tables, [picture])
    return section, first


def cost(s: Study, least: NDArray[np.intp], chosen: NDArray[np.intp]) -> str:
    """Parameters of the chosen ensemble and of the least similar one."""
    if s.published is None:
        return text("no_cost")
    sizes = [count(int(s.published.params[group].sum())) for group in (chosen, least)]
    other = "" if sizes[0] == sizes[1] else text("other_cost", cost=f"{sizes[1]} parameters")
    return text("cost", cost=f"{sizes[0]} parameters", other=other)


# Teachers


def teacher_section(s: Study) -> Advice:
    """Teachers of a student, ranked, with reasons."""
    names, wanted = s.names, str(s.config.select.student)
    student, notes = stand_in(s, wanted, "select.student: the matrix")
    bases = components_of(s)[BASE].to_list()
    table, name = select.teachers(s.scores, student, bases, names), names[student]
    base = bases[student]
    reasons = []
    for row in table.to_dicts():
        kind = "same" if row["base_architecture"] == base else "other"
        level = "high" if row["fit"] >= 2 / 3 else "middle" if row["fit"] >= 1 / 3 else "low"
        reasons.append(text(f"reason.{kind}", level, student=base, **row))
    if s.published is not None:
        accuracy = s.published.accuracy[table["position"].to_numpy()]
        table = table.insert_column(4, pl.Series("accuracy", accuracy))
    table = table.drop("position").with_columns(reason=pl.Series(reasons))
    groups = [base if b == base else "another base" for b in table["base_architecture"]]
    caption = text("teacher.caption", student=name, base=base)
    picture = teacher_figure(s, "select_teachers", table, groups, name, caption)
    best, same = table.row(0, named=True), table.filter(base_architecture=base)
    answer = text("teacher.best", student=wanted, **best)
    if same.height and best["base_architecture"] != base:
        answer += text("teacher.same", base=base, teacher=same["teacher"][0])
    train = [] if s.published is None else [train_command(s, "teacher", wanted, [best["teacher"]])]
    section = Section(f"Teachers for {name}", [text("guideline")], {"Teachers": table}, [picture])
    return section, [answer, *notes, *train]


def choose_teachers(s: Study) -> None:
    """experiment=teachers: all candidates above a similarity, and a sample of the others.

    Candidates are all models but the student and the excluded families. Raises UserError where a
    matrix from a file has fewer candidates than teachers.
    """
    options, wanted = resolved(s.config.teachers), str(s.config.student)
    number, above, seed = options["number"], options["above"], options["seed"]
    student, notes = stand_in(s, wanted, "student=NAME: the matrix")
    kept = [family not in options["exclude"] for family in s.families]
    candidates = [i for i, keep in enumerate(kept) if keep and i != student]
    number = min(number, len(candidates)) if s.measured else number
    names, similarities = [s.names[i] for i in candidates], s.scores[student, candidates]
    with naming_group("teachers", s.config.teachers):
        table = select.choose_teachers(names, similarities, number, above, seed)
    chosen, name = table.drop_nulls("chosen"), s.names[student]
    s.outputs.table("teachers", table)
    groups = [
        f"{'above' if kind == 'above' else 'sampled below'} {above:g}" for kind in chosen["chosen"]
    ]
    caption = text("teachers.caption", student=name, chosen=chosen.height)
    picture = teacher_figure(s, "teachers", chosen, groups, name, caption)
    teachers, some = chosen["teacher"].to_list(), chosen["similarity"].to_numpy()
    scores, found = table["similarity"].to_numpy(), power(STUDENTS_R, chosen.height)
    values = {
        "listed": and_more(teachers),
        "n": chosen.height,
        "candidates": table.height,
        "share": np.ptp(some) / (np.ptp(scores) or 1.0),
        "low": some.min(),
        "high": some.max(),
        "verdict": verdict(found, threshold=POWER),
        "power": found,
        "wanted": POWER,
        "r": STUDENTS_R,
        "enough": select.teachers_for_power(),
        "threshold": above,
        "seed": seed,
        "above": chosen.filter(chosen="above").height,
        "sampled": chosen.filter(chosen="sampled").height,
    }
    answer = [text(f"teachers.{key}", **values) for key in ("span", "shows", "how")]
    s.finish(
        f"Which teachers for {wanted}?",
        f"Similarities are those of {s.source}.",
        [*answer, *notes, train_command(s, "teachers", wanted, teachers)],
        [Section("The choice", figures=[picture], tables={"All candidates": table})],
    )


def teacher_figure(
    s: Study, name: str, table: pl.DataFrame, groups: Sequence[str], student: str, caption: str
) -> Picture:
    """The first teachers of a table by their similarity to the student, coloured by group."""
    shown = table.head(SHOWN)
    label = f"similarity to {student} (nats)"
    values = {"": shown.select("similarity").to_numpy()}
    drawing = ranked_figure(shown["teacher"].to_list(), values, label, groups[:SHOWN])
    return s.outputs.figure(name, drawing, table, caption)


def train_command(s: Study, key: str, student: str, teachers: Sequence[str]) -> str:
    """A sentence with the command that trains the student with each teacher."""
    many, on = ["-m"] * (key == "teachers"), ["dataset=imagenet"] * (s.published is not None)
    words = ["experiment=distill", f"student={student}", f"teacher={','.join(teachers)}"]
    line = command(*many, *words, *on, script="train")
    return text(f"{key}.train", command=with_root(line) if on else line)
