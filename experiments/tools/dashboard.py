"""Three W&B workspaces of netkin's runs: pairwise runs, a distillation sweep, seeds and recipes.

The boards below say what each panel shows, by the keys that runs log. With an account they are
saved as views of the project; they are always written as JSON.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import DictConfig

from experiments.cli.finish import terminal
from experiments.cli.values import run_folder
from netkin.errors import UserError, first_line
from netkin.store.files import write
from netkin.tracking import logged_in

Kind = Literal["line", "scatter", "bar", "parallel", "media", "table"]


@dataclass(frozen=True)
class Panel:
    """A panel of a board.

    Attributes:
        kind: what it draws.
        title: of the panel.
        keys: what it shows: series of a line, y of a scatter, numbers of a bar, columns of parallel
            coordinates, an image, page or table. A key of the config begins with "config.".
        x: of a line, a series; of a scatter, a number of the summary or a key of the config.
        log_x: whether that axis is logarithmic.
        by: a key of the config by which the runs of a line or a bar are grouped.
    """

    kind: Kind
    title: str
    keys: Sequence[str]
    x: str | None = None
    log_x: bool = False
    by: str | None = None

    @property
    def all_keys(self) -> set[str]:
        """Every key that the panel names."""
        return {*self.keys, *filter(None, (self.x, self.by))}


@dataclass(frozen=True)
class Board:
    """A workspace: its file's name, its title, the experiments of its runs, its columns of the
    table of runs, and its sections."""

    file: str
    title: str
    experiments: Sequence[str]
    columns: Sequence[str]
    sections: dict[str, Sequence[Panel]] = field(default_factory=dict)


BOARDS = (
    Board(
        "pairwise",
        "netkin: pairwise runs",
        ("pairwise",),
        ("similarity/mean", "clean_accuracy/mean", "white_box_success/least", "config.eps"),
        {
            "Scores": (
                Panel("media", "Similarity of every pair", ["figures/similarity"]),
                Panel("bar", "Mean similarity", ["similarity/mean"]),
                Panel(
                    *("bar", "Within and between families"),
                    ["similarity/within", "similarity/between"],
                ),
                Panel("scatter", "Similarity by eps", ["similarity/mean"], "config.eps"),
                Panel("table", "Pairs", ["tables/pairs"]),
                Panel("table", "Models", ["tables/models"]),
                Panel("media", "Page", ["report"]),
            ),
            "What scores depend on": (
                Panel("bar", "Least white-box success", ["white_box_success/least"]),
                Panel("bar", "Fooled by noise", ["noise/mean"]),
                Panel("scatter", "Accuracy", ["similarity/mean"], "clean_accuracy/mean"),
            ),
            "Cost": (
                Panel(
                    *("line", "Progress", ["progress/craft", "progress/transfer"]),
                    x="progress/seconds",
                ),
                Panel("bar", "Seconds", ["seconds/craft", "seconds/transfer", "seconds/clean"]),
                Panel(
                    *("bar", "Images a second"),
                    ["images_per_second/craft", "images_per_second/transfer"],
                ),
                Panel("table", "Stages of each member", ["tables/stages"]),
            ),
        },
    ),
    Board(
        "distill",
        "netkin: teachers and students",
        ("distill",),
        ("accuracy", "gain", "teacher_accuracy", "similarity", "agreement", "config.teacher"),
        {
            "Which teacher": (
                Panel("scatter", "Student by similarity (Fig. 5)", ["accuracy"], "similarity"),
                Panel(
                    *("scatter", "Student by the teacher's accuracy (Fig. F.1)", ["accuracy"]),
                    "teacher_accuracy",
                ),
                Panel("bar", "Gain over the labels alone", ["gain"], by="config.teacher"),
                Panel("scatter", "Agreement with the teacher", ["agreement"], "similarity"),
                Panel("table", "Results", ["tables/result"]),
            ),
            "Training": (
                Panel("line", "Test accuracy", ["val/accuracy"], x="epoch"),
                Panel(
                    "line",
                    "Test accuracy without a teacher",
                    ["alone/val/accuracy"],
                    x="alone/epoch",
                ),
                Panel("line", "Loss", ["train/loss"], x="epoch"),
                Panel("line", "Loss of the teacher's part", ["train/teacher_loss"], x="epoch"),
                Panel("line", "Agreement in training", ["train/teacher_agreement"], x="epoch"),
                Panel("line", "Learning rate", ["train/lr"], x="epoch"),
            ),
        },
    ),
    Board(
        "recipes",
        "netkin: seeds and recipes",
        ("seeds", "hparams", "scratch"),
        ("accuracy", "config.lr", "config.weight_decay", "config.sched", "config.seed"),
        {
            "Accuracy": (
                Panel("line", "Test accuracy by lr", ["val/accuracy"], x="epoch", by="config.lr"),
                Panel(
                    "parallel",
                    "Recipe to accuracy",
                    ["config.lr", "config.weight_decay", "config.sched", "accuracy"],
                ),
                Panel("scatter", "By lr", ["accuracy"], "config.lr", log_x=True),
                Panel(
                    "scatter", "By weight decay", ["accuracy"], "config.weight_decay", log_x=True
                ),
                Panel("scatter", "By seed", ["accuracy"], "config.seed"),
            ),
            "Training": (
                Panel("line", "Loss", ["train/loss"], x="epoch"),
                Panel("line", "Gradient norm", ["train/grad_norm"], x="epoch"),
                Panel("line", "Learning rate", ["train/lr"], x="epoch"),
                Panel("line", "Images a second", ["train/images_per_second"], x="epoch"),
            ),
        },
    ),
)


def run(config: DictConfig) -> None:
    """Write the boards as JSON, and save them where there is an account."""
    try:
        import wandb_workspaces.workspaces as library
    except ModuleNotFoundError:
        raise UserError(
            "dashboards need wandb-workspaces; run `pip install 'netkin[dashboards]'`"
        ) from None
    logger = config.logger
    entity = config.entity or logger.get("entity")
    project = str(config.project or logger.get("project") or "netkin")
    console, folder = terminal(), run_folder()
    owner = str(entity or "entity")
    views = [(board, workspace(board, library, owner, project)) for board in BOARDS]
    for board, view in views:
        # The library has no public way to write a view into a file.
        text = view._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2)
        write(folder / f"{board.file}.json", lambda file, text=text: file.write_text(text))
    console.print(f"Written  {folder}/{', '.join(f'{board.file}.json' for board in BOARDS)}")
    if entity is None:
        console.print(
            "Nothing was saved to W&B: give entity=NAME (yours or your team's) and project=NAME."
        )
        return
    if not logged_in():
        raise UserError(
            "saving dashboards needs an API key of W&B; run `wandb login`, or set WANDB_API_KEY"
        )
    for board, view in views:
        try:
            view.save()
        except Exception as error:  # of many types, for one reason: W&B did not take it
            raise UserError(
                f"W&B did not save {board.title!r} to {entity}/{project} ({first_line(error)}); is "
                "there such a project, and may you write to it?"
            ) from None
        console.print(f"Saved    {board.title}: {view.url}")


def workspace(board: Board, library: Any, entity: str, project: str) -> Any:
    """A board as a workspace of wandb-workspaces.

    Args:
        board: what it shows.
        library: the module wandb_workspaces.workspaces.
        entity, project: whose runs it shows.
    """
    job_type = library.Metric("JobType")
    return library.Workspace(
        entity=entity,
        project=project,
        name=board.title,
        sections=[
            library.Section(name=name, panels=[_panel(panel) for panel in panels], is_open=True)
            for name, panels in board.sections.items()
        ],
        runset_settings=library.RunsetSettings(
            filters=[job_type.isin(list(board.experiments))],
            pinned_columns=["run:displayName", *map(_column, board.columns)],
        ),
    )


def _column(key: str) -> str:
    if key.startswith("config."):
        return f"config:{key.removeprefix('config.')}.value"
    return f"summary:{key}"


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as parts

    def number(key: str | None) -> Any:
        if key is None:
            return None
        if key.startswith("config."):
            return parts.Config(key.removeprefix("config."))
        return parts.SummaryMetric(key)

    title, keys = panel.title, list[Any](panel.keys)
    if panel.kind == "line":
        return parts.LinePlot(title=title, x=panel.x, y=keys, groupby=number(panel.by))
    if panel.kind == "scatter":
        return parts.ScatterPlot(
            title=title, x=number(panel.x), y=number(keys[0]), log_x=panel.log_x or None
        )
    if panel.kind == "bar":
        return parts.BarPlot(title=title, metrics=keys, groupby=number(panel.by))
    if panel.kind == "parallel":
        columns = [parts.ParallelCoordinatesPlotColumn(number(key)) for key in keys]
        return parts.ParallelCoordinatesPlot(title=title, columns=columns)
    if panel.kind == "table":
        return parts.WeavePanelSummaryTable(table_name=keys[0])
    return parts.MediaBrowser(title=title, media_keys=keys)
