"""Advice on ensembles from a matrix without images: by the members' accuracies, then by similarity.

A part of `experiments.studies.select`. Nothing here is measured on ensembles, and the answer says
what is known against each recommendation.
"""

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig

from experiments.cli.components import PUBLISHED
from experiments.cli.keys import naming_group
from experiments.cli.runs import command, with_root
from experiments.cli.sat69 import pinned
from experiments.cli.study import Study
from experiments.cli.values import positive
from netkin.analysis import select
from netkin.analysis.matrix import Matrix
from netkin.analysis.select import LEAST, LIKELY, MOST, expected_error, mean_similarity
from netkin.analysis.statistics import verdict
from netkin.errors import UserError, and_more
from netkin.report.plots import scatter
from netkin.report.study import Section
from netkin.report.style import panels, style
from netkin.report.text import count
from netkin.zoo.build import flops
from netkin.zoo.member import parse_members

Advice = tuple[Section, list[str]]
"""A section of the page, and its part of the answer."""
LITERATURE = (
    "Abe et al. (2023, Pathologies of predictive diversity in deep ensembles) find in over 1,000 "
    "ensembles that larger, more accurate members gain more than diverse ones, and that "
    "encouraging diversity harms large networks. Gontijo-Lopes et al. (2022, No one representation "
    "to rule them all) find the opposite for models trained in different ways, which err on "
    "different images: two of 76.5% accuracy reach 83.4% together."
)
"""Two sentences on diversity, on which the literature disagrees."""
NOT_KNOWN = (
    "What does similarity add to accuracy on held-out models? Not certain: these files hold no "
    "predictions on images, so it cannot be measured here. In the paper's 2,346 pairs of ImageNet "
    "models similarity and error reduction have r = -0.31: similarity explains 10% of its variance."
)
METHOD = (
    "An expected error is not a measurement. It is computed from the members' accuracies as if "
    "the margins of any two models (true logit less the highest other one) were normal over images "
    f"with a correlation of {LIKELY}; the range is that of {LEAST} to {MOST}. The published scores "
    "cannot tell these correlations, so similarity is not in the expected errors: it only chooses "
    "among ensembles whose expected errors do not differ by more than select.tolerance."
)


def max_params(options: DictConfig) -> float | None:
    """The value of select.max_params."""
    if options.max_params is None:
        return None
    return positive(options.max_params, "select.max_params")


def checked_tolerance(options: DictConfig) -> float:
    """The value of select.tolerance."""
    value = options.tolerance
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise UserError(f"select.tolerance must be 0 or more, got {value!r}")
    return value


def known(s: Study, matrix: Matrix) -> tuple[NDArray | None, NDArray | None]:
    """Accuracies in [0, 1] and numbers of parameters of the N models, [N]; None where not given."""
    options = s.config.select
    accuracy = params = None
    if s.published is not None:
        accuracy, params = s.published.accuracy, s.published.params
    if options.accuracies is not None:
        accuracy = select.read_accuracies(options.accuracies, matrix.names)
    return accuracy, params


def blind_section(s: Study, matrix: Matrix, include: list[int]) -> Advice:
    """The most promising ensembles of a matrix without logits."""
    accuracy, params = known(s, matrix)
    limit = max_params(s.config.select)
    if limit is not None and params is None:
        raise UserError(
            "select.max_params needs the models' sizes: use similarity=sat69, which has them, or "
            "name the models in model.members, with their logits in the store"
        )
    if accuracy is None:
        return by_diversity(s, matrix, include)
    return by_accuracy(s, matrix, include, accuracy, params, limit)


def by_accuracy(
    s: Study,
    matrix: Matrix,
    include: list[int],
    accuracy: NDArray[np.float64],
    params: NDArray[np.float64] | None,
    limit: float | None,
) -> Advice:
    """Ensembles by expected error; among those that accuracy cannot tell apart, the least alike."""
    options, scores = s.config.select, matrix.scores
    tolerance = checked_tolerance(options)
    use = np.flatnonzero(~np.isnan(accuracy))
    out = [name for name, value in zip(matrix.names, accuracy, strict=True) if np.isnan(value)]
    if gone := [i for i in include if i not in use]:
        raise UserError(f"select.include: {matrix.names[gone[0]]} has no known accuracy")
    errors = 1 - accuracy
    sizes = None if params is None else params[use]
    with naming_group("select", options):
        found = select.search(
            lambda groups: expected_error(errors[use], groups),
            len(use),
            options.size,
            [int(np.searchsorted(use, i)) for i in include],
            sizes,
            limit,
        )
    groups = use[found]
    expected, similarity = expected_error(errors, groups), mean_similarity(scores, groups)
    order, near = select.least_similar_of_the_best(expected, similarity, tolerance)
    best = groups[order[: options.top]]
    table = accuracy_table(matrix, best, errors, params)
    sampled = np.random.default_rng(options.seed).permutation(len(groups))[: options.samples]
    figure = ensemble_figure(
        similarity[sampled],
        100 * expected[sampled],
        table["mean_similarity"].to_numpy(),
        100 * table["expected_error"].to_numpy(),
        "expected top-1 error (%)",
    )
    answer = [
        in_words(table),
        against(matrix, groups[0], best[0], errors, near, tolerance),
        cost(s, matrix, groups[0], best[0], params),
        NOT_KNOWN,
    ]
    if out:
        answer.append(f"Left out, because their accuracy is not known: {and_more(out)}.")
    if s.published is not None:
        members = ",".join(matrix.names[i] for i in best[0])
        measured = command("experiment=ensemble", "dataset=imagenet", f"model.members=[{members}]")
        answer.append(f"To measure it on ImageNet's images: {with_root(measured)}")
    picture = s.outputs.figure(
        "select_ensembles",
        figure,
        table,
        f"Ensembles of {options.size}: {len(sampled)} at random, and the {table.height} most "
        "promising.",
    )
    tables = {"The most promising ensembles": table}
    return Section(f"Ensembles of {options.size}", [LITERATURE, METHOD], tables, [picture]), answer


def accuracy_table(
    matrix: Matrix,
    groups: NDArray[np.intp],
    errors: NDArray[np.float64],
    params: NDArray[np.float64] | None,
) -> pl.DataFrame:
    """A row an ensemble: its expected error with the range, its members' errors, and its size."""
    table = pl.DataFrame(
        {
            **models_columns(matrix, groups),
            "expected_error": expected_error(errors, groups),
            "expected_low": expected_error(errors, groups, LEAST),
            "expected_high": expected_error(errors, groups, MOST),
            "mean_member_error": errors[groups].mean(axis=1),
            "best_member_error": errors[groups].min(axis=1),
        }
    )
    if params is None:
        return table
    return table.with_columns(params=pl.Series(params[groups].sum(axis=1)).cast(pl.Int64))


def in_words(table: pl.DataFrame) -> str:
    """The best ensemble, the verdict first: should it err less than its best member?"""
    first = table.row(0, named=True)
    alone = first["best_member_error"]
    better = verdict(alone - first["expected_high"], alone - first["expected_low"])
    return (
        f"{better}: {first['models']} should misclassify {first['expected_error']:.1%} of the "
        f"images ({first['expected_low']:.1%} to {first['expected_high']:.1%}), its best member "
        f"alone {alone:.1%}. This is expected from the members' accuracies, not measured."
    )


def against(
    matrix: Matrix,
    accurate: NDArray[np.intp],
    chosen: NDArray[np.intp],
    errors: NDArray[np.float64],
    near: int,
    tolerance: float,
) -> str:
    """What accuracy alone would choose, and why the choice is another."""

    def words(group: NDArray[np.intp]) -> str:
        return ", ".join(f"{matrix.names[i]} ({1 - errors[i]:.1%})" for i in group)

    def figures(group: NDArray[np.intp]) -> str:
        error = expected_error(errors, group[None])[0]
        return f"{error:.1%}, mean similarity {mean_similarity(matrix.scores, group[None])[0]:.2f}"

    if {*accurate} == {*chosen}:
        return f"Members and accuracies: {words(chosen)}. By accuracy alone the choice is the same."
    return (
        f"Members and accuracies: {words(chosen)}; mean similarity "
        f"{mean_similarity(matrix.scores, chosen[None])[0]:.2f}. By accuracy alone the choice is "
        f"{words(accurate)}: expected error {figures(accurate)}. The first one is the least "
        f"similar of the {near:,} ensembles within {100 * tolerance:.1f} points of that."
    )


def cost(
    s: Study,
    matrix: Matrix,
    accurate: NDArray[np.intp],
    chosen: NDArray[np.intp],
    params: NDArray[np.float64] | None,
) -> str:
    """Parameters and operations of the chosen ensemble and of the one by accuracy alone."""
    if params is None or s.published is None:
        return "Its cost is not known: the files have no sizes of the models."
    entries, texts = pinned(), []
    for group in (chosen, accurate):
        names = [matrix.names[i] for i in group]
        each = [flops(parse_members([n], entries, at_least=1)[0], PUBLISHED) for n in names]
        operations = (
            "" if None in each else f" and {sum(filter(None, each)) / 1e9:.1f} GFLOPs an image"
        )
        texts.append(f"{count(int(params[group].sum()))} parameters{operations}")
    other = "" if texts[0] == texts[1] else f"; the choice by accuracy alone costs {texts[1]}"
    return f"It costs {texts[0]}{other}."


def by_diversity(s: Study, matrix: Matrix, include: list[int]) -> Advice:
    """Ensembles by mean similarity alone; no error is expected."""
    options, scores = s.config.select, matrix.scores
    ranked = select.search(
        lambda groups: mean_similarity(scores, groups), len(matrix.names), options.size, include
    )
    best = ranked[: options.top]
    rows, columns = np.tril_indices(options.size, k=-1)
    closest = scores[ranked[:, rows], ranked[:, columns]].max(axis=1)
    table = pl.DataFrame({**models_columns(matrix, best), "closest_pair": closest[: len(best)]})
    sampled = np.random.default_rng(options.seed).permutation(len(ranked))[: options.samples]
    figure = ensemble_figure(
        mean_similarity(scores, ranked[sampled]),
        closest[sampled],
        table["mean_similarity"].to_numpy(),
        closest[: len(best)],
        "closest pair (nats)",
    )
    first = table.row(0, named=True)
    answer = [
        f"Not certain: {first['models']} are the least similar {options.size} (mean similarity "
        f"{first['mean_similarity']:.2f}, of all ensembles "
        f"{mean_similarity(scores, ranked).mean():.2f}), which does not say how well "
        "they do together. This ranks by diversity alone.",
        "No errors are expected, because the file has no accuracies. Give them with "
        "select.accuracies=path.csv, or measure the models with experiment=pairwise.",
    ]
    picture = s.outputs.figure(
        "select_ensembles",
        figure,
        table,
        f"Ensembles of {options.size}: {len(sampled)} at random, and the {table.height} least "
        "similar.",
    )
    tables = {"The least similar ensembles": table}
    return Section(f"Ensembles of {options.size}", [LITERATURE], tables, [picture]), answer


def models_columns(matrix: Matrix, groups: NDArray[np.intp]) -> dict:
    """The first columns of a table of ensembles: rank, models, mean_similarity (nats)."""
    return {
        "rank": range(1, len(groups) + 1),
        "models": [" + ".join(matrix.names[i] for i in group) for group in groups],
        "mean_similarity": mean_similarity(matrix.scores, groups),
    }


@style()
def ensemble_figure(x: NDArray, y: NDArray, best_x: NDArray, best_y: NDArray, label: str) -> Figure:
    """Sampled ensembles and the most promising ones, by mean similarity."""
    figure, (ax,) = panels(1, 4.6, 3.0)
    scatter(
        ax,
        np.r_[x, best_x],
        np.r_[y, best_y],
        "mean similarity of the pairs (nats)",
        label,
        groups=["others"] * len(x) + ["most promising"] * len(best_x),
    )
    return figure
