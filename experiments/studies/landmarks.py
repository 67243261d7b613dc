"""Can all scores be predicted from those with a few models, the landmarks?

All pairs of N models take N attacks and N^2 evaluations. Here each model is evaluated on the images
of m landmarks, and these on its images; with `one_sided=true` only landmarks are attacked. The
other pairs are predicted, with intervals (`netkin.analysis.landmarks`). How far that can be trusted
is measured on the run itself: each landmark in turn is taken for another model. That holds for
models like the landmarks; scores with others have no interval, and too many of them no Yes. Writes
similarity.csv, which other studies read with `similarity=FILE`, measured.csv, which says which of
its cells were measured, pairs.csv, held_out (figure and table), landmarks (figure and table) and
report.html.

On the published 69 models it works, on the 12 digits members it does not:
experiments/results/landmarks.md.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from omegaconf import DictConfig, ListConfig

from experiments.cli.components import bases_of
from experiments.cli.measured import describe
from experiments.cli.members import build_members
from experiments.cli.setting import Opened, opened
from experiments.cli.study import Study, study
from netkin.analysis.landmarks import FEWEST, HIGHEST, Completed, check_number, complete
from netkin.analysis.matrix import Matrix, pair_values, position_of
from netkin.errors import UserError, and_more
from netkin.model import Model
from netkin.report.heatmap import heatmap_figure
from netkin.report.plots import Marks, scatter_figure
from netkin.report.sentences import Sentences
from netkin.report.study import Section
from netkin.run import Incomplete, Run

AUTO = 20  # landmarks of `landmarks=auto`, or half of the models where that is less
text = Sentences(Path(__file__).with_suffix(".toml"))


def run(config: DictConfig) -> None:
    if config.similarity is not None:
        with study(config) as s:
            chosen = choose(config.landmarks, s.names, config.seed)
            report(s, s.names, bases_of(s), s.source, chosen, s.scores)
        return
    members = build_members(config)
    names = [member.name for member in members]
    landmarks = [names[i] for i in choose(config.landmarks, names, config.seed)]
    with opened(config, members, sources=landmarks if config.one_sided else None) as o:
        done = pass_landmarks(o.run, landmarks, config.one_sided)
        results, names = o.run.results, [model.name for model in done]
        bases = [results.base_architecture(model) for model in done]
        chosen, eps_s = [names.index(name) for name in landmarks], config.score.eps_s
        scores, pairs = results.landmark_scores(done, chosen, config.one_sided, eps_s)
        source = describe(o.run.evaluation, len(done))
        report(o, names, bases, source, chosen, scores, pairs)
        o.run.raise_failures()


def choose(value: Any, names: Sequence[str], seed: int, all_allowed: bool = False) -> list[int]:
    """The positions of the landmarks among the named models, in the models' order.

    `value` is a number, which are drawn at random, names, or auto. With `all_allowed` all models,
    or so many that no pair is left, may be landmarks. Raises UserError for another value, an
    unknown name, and too few or too many landmarks.
    """
    if value == "auto":
        value = min(AUTO, max(FEWEST, len(names) // 2))
    chosen: list[int] = []
    if isinstance(value, list | ListConfig) and value:
        chosen = [position_of(str(name), names, "landmarks: the run") for name in value]
        if len({*chosen}) < len(chosen):
            raise UserError(f"landmarks names a model twice: {', '.join(map(str, value))}")
        number = len(chosen)
    elif not isinstance(value, int) or isinstance(value, bool):
        raise UserError(
            f"landmarks must be a number, a list of models or auto, got {value!r}; for example "
            "landmarks=20 or landmarks=[resnet50,vit_base_patch16_224]"
        )
    else:
        number = value
    if not all_allowed or number > len(names):
        check_number(number, len(names))
    elif number < 1:
        raise UserError(f"landmarks must be 1 model or more, got {number}")
    if not chosen:
        chosen = np.random.default_rng(seed).choice(len(names), number, replace=False).tolist()
    return sorted(chosen)


def pass_landmarks(r: Run, names: Sequence[str], one_sided: bool) -> list[Model]:
    """Attack the landmarks, and evaluate all models on their images, where the store lacks that.

    Unless `one_sided`, the others are attacked, too, and the landmarks evaluated on their images.
    Returns the models that did not fail: without a correct image in common with a landmark, one is
    left out as failed. Raises Incomplete where a landmark failed, or all other models did.
    """
    landmarks = [model for model in r.models if model.name in names]
    with r.working():
        evaluated = r.with_common_images(r.clean(), landmarks)
        crafted = r.craft([m for m in evaluated if not one_sided or m in landmarks])
        if all(landmark in crafted for landmark in landmarks):
            r.transfer(r.remaining(evaluated), landmarks)
            rest = [m for m in r.remaining(crafted) if m not in landmarks]
            if not one_sided and rest:
                r.transfer(landmarks, rest)
    finished = r.remaining()
    alone = len(r.models) > len(finished) == len(landmarks)
    if lost := [f for f in r.failures if alone or f.model in landmarks]:
        raise Incomplete(lost, None, len(r.models))
    return finished


def report(
    o: Study | Opened,
    names: Sequence[str],
    bases: Sequence[str],
    source: str,
    landmarks: list[int],
    scores: NDArray[np.float64],
    measured: pl.DataFrame | None = None,
) -> None:
    """Predict the scores, write tables, figures and the page, and print the answer.

    Of a file scores [N, N] are all there, else those with a landmark, and `measured` is the table
    of `netkin.results.Results.landmark_scores`.
    """
    config, n, m, truth = o.config, len(names), len(landmarks), scores
    one_sided = measured is not None and bool(config.one_sided)
    c = complete(scores, landmarks, config.level, config.seed, one_sided)
    both = (c.scores, c.low, c.high)  # of one-sided scores the mean of the directions
    scores, low, high = ((matrix + matrix.T) / 2 for matrix in both)
    c = c._replace(scores=scores, low=low, high=high)
    square = o.outputs.table("similarity", Matrix(tuple(names), scores).table())
    o.outputs.table("measured", Matrix(tuple(names), c.measured.astype(float)).table())
    pairs = o.outputs.table("pairs", pair_table(names, c, measured, truth))
    predicted = pairs.filter(kind="predicted")
    known = predicted["low"].is_not_null()
    held, (least, most) = c.held_out, c.held_out.r2_interval()
    decided = c.verdict
    of = {"landmark": held.landmark, "model": held.other}
    table = pl.DataFrame(
        {key: [names[i] for i in index] for key, index in of.items()}
        | {"measured": held.measured, "predicted": held.predicted, "covered": held.covered}
    )
    o.tracker.summary({"landmarks/held_out_r2": held.r2})
    error = float(np.abs(held.predicted - held.measured).mean())
    note = f"R² = {held.r2:.2f}, mean error {error:.3f} nats"
    x, y = table["predicted"], table["measured"]
    line = Marks(identity="predicted as measured")
    drawing = scatter_figure(
        x, y, "predicted score (nats)", "measured score (nats)", text=note, marks=line
    )
    of_held = o.outputs.figure("held_out", drawing, table, text("held_out"))
    other = np.isin(np.arange(n), landmarks, invert=True).astype(np.intp)
    drawing = heatmap_figure(scores, names, bases, "similarity s (nats)", clusters=other)
    caption = text("matrix", m=m, rest=n - m)
    matrix = o.outputs.figure("landmarks", drawing, square, caption)
    answer = [
        text(
            "held" if c.represented or decided == "No" else "unlike",
            verdict=decided,
            then=text("then", decided),
            outside=int(c.outside.sum()),
            rest=n - m,
            m=m,
            r2=held.r2,
            low=least,
            high=most,
            error=error,
            level=c.level,
            spread=float(held.measured.std()),
            inside=held.covered.mean(),
        ),
        *limits(c, names, 1 - float(known.to_numpy().mean())),
        text(
            "cost",
            attacks=f"{m} attacks instead of {n}" if one_sided else f"{n} attacks",
            evaluations=n * m if one_sided else n * m + (n - m) * m,
            all=n * n,
        ),
    ]
    if measured is None:
        of = {"n": predicted.height, "highest": HIGHEST, **c.against(truth)}
        inside = "" if np.isnan(of["coverage"]) else text("inside", **of)
        if not np.isnan(of["coverage_of_highest"]):
            inside += text("highest_inside", **of)
        hidden = text("hidden", inside=inside, **of)
        answer.insert(len(answer) - 1, hidden)
    else:
        answer.append(text("file", file=o.outputs.folder / "similarity.csv"))
    what = "one-sided scores, of the landmarks' images," if one_sided else "scores"
    counts = {"predicted": predicted.height, "pairs": pairs.height, "m": m}
    listed = and_more([names[i] for i in landmarks])
    o.finish(
        text("title", n=n, m=m),
        text("question", what=what, source=source, names=listed, **counts),
        answer,
        [
            Section("How well held-out pairs are predicted", (), {}, [of_held]),
            Section("The matrix", figures=[matrix]),
            Section("Pairs", (), {"The highest predicted scores": predicted.head(20)}),
        ],
    )


def limits(c: Completed, names: Sequence[str], without: float) -> list[str]:
    """What predicted scores are not for, and the models outside what the landmarks show, by whom so
    many of the predicted scores are `without` an interval."""
    held, sentences = c.held_out, list[str]()
    outside = [names[i] for i in np.flatnonzero(c.outside).tolist()]
    if c.verdict == "Yes":
        shares = {"found": held.nearest_found.mean(), "highest": held.highest_covered}
        sentences.append(text("not_for", share=HIGHEST, **shares))
    if outside:
        rest = len(names) - len(held.nearest_found)
        values = {"n": len(outside), "rest": rest, "share": without}
        sentences.append(text("outside", names=and_more(outside), **values))
    return sentences


def pair_table(
    names: Sequence[str],
    c: Completed,
    measured: pl.DataFrame | None,
    truth: NDArray[np.float64],
) -> pl.DataFrame:
    """A row a pair, the highest score first: a, b, kind (measured or predicted), score, low, high
    (null with a model outside what the landmarks show), level (of the interval); for measured pairs
    n, a_fools_b, b_fools_a, for a file's true scores true_score."""
    level = np.full_like(c.scores, c.level)
    table = Matrix(tuple(names), c.scores).pairs(low=c.low, high=c.high, level=level)
    table = table.with_columns(pl.col("low", "high").fill_nan(None))
    kind = np.where(pair_values(c.measured), "measured", "predicted")
    table = table.insert_column(2, pl.Series("kind", kind))
    if measured is None:
        empty = pl.when(kind="predicted").then(pl.col("low", "high", "level"))
        table = table.with_columns(empty, pl.Series("true_score", pair_values(truth)))
    else:
        known = measured.with_columns(pl.lit("measured").alias("kind"), level=0.95)
        table = pl.concat([table.filter(kind="predicted"), known], how="diagonal")
    return table.sort(["score", "a", "b"], descending=[True, False, False])
