"""Three W&B workspaces of netkin's runs: pairwise runs, a distillation sweep, seeds and recipes.

dashboard.yaml has what each panel shows, by the keys that runs log. With an account the workspaces
are saved as views of the project; they are always written as JSON.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from experiments.cli.finish import terminal
from experiments.cli.values import run_folder
from netkin.errors import UserError, first_line
from netkin.store.files import write
from netkin.tracking import logged_in

BOARDS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
)
"""By the name of its file: title, experiments, columns of the table of runs, and sections."""


def run(config: DictConfig) -> None:
    """Write the boards as JSON, and save them where there is an account."""
    try:
        import wandb_workspaces.workspaces as library
    except ModuleNotFoundError:
        raise UserError(
            "dashboards need wandb-workspaces; run `pip install 'netkin[dashboards]'`"
        ) from None
    entity = config.entity or config.logger.get("entity")
    project = str(config.project or config.logger.get("project") or "netkin")
    console, folder, views = terminal(), run_folder(), []
    for name, board in BOARDS.items():
        view = workspace(board, library, str(entity or "entity"), project)
        # The library has no public way to write a view into a file.
        text = view._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2)
        write(folder / f"{name}.json", lambda file, text=text: file.write_text(text))
        views.append(view)
    console.print(f"Written  {folder}/{', '.join(f'{name}.json' for name in BOARDS)}")
    if entity is None:
        console.print(
            "Nothing was saved to W&B: give entity=NAME (yours or your team's) and project=NAME."
        )
        return
    if not logged_in():
        raise UserError(
            "saving dashboards needs an API key of W&B; run `wandb login`, or set WANDB_API_KEY"
        )
    for view in views:
        try:
            view.save()
        except Exception as error:  # of many types, for one reason: W&B did not take it
            raise UserError(
                f"W&B did not save {view.name!r} to {entity}/{project} ({first_line(error)}); is "
                "there such a project, and may you write to it?"
            ) from None
        console.print(f"Saved    {view.name}: {view.url}")


def workspace(board: Mapping[str, Any], library: Any, entity: str, project: str) -> Any:
    """A board as a workspace of wandb-workspaces (`library`), of a project of an entity."""

    def column(key: str) -> str:
        config = key.removeprefix("config.")
        return f"summary:{key}" if config == key else f"config:{config}.value"

    return library.Workspace(
        entity=entity,
        project=project,
        name=board["title"],
        sections=[
            library.Section(name=name, panels=[_panel(**panel) for panel in panels], is_open=True)
            for name, panels in board["sections"].items()
        ],
        runset_settings=library.RunsetSettings(
            filters=[library.Metric("JobType").isin(board["experiments"])],
            pinned_columns=["run:displayName", *map(column, board["columns"])],
        ),
    )


def _panel(
    kind: str,
    title: str,
    keys: list[Any],
    x: str | None = None,
    log_x: bool = False,
    by: str | None = None,
) -> Any:
    """A panel of W&B; see dashboard.yaml."""
    import wandb_workspaces.reports.v2 as parts

    def number(key: str | None) -> Any:
        if key is None:
            return None
        config = key.removeprefix("config.")
        return parts.SummaryMetric(key) if config == key else parts.Config(config)

    match kind:
        case "line":
            return parts.LinePlot(title=title, x=x, y=keys, groupby=number(by))
        case "scatter":
            return parts.ScatterPlot(
                title=title, x=number(x), y=number(keys[0]), log_x=log_x or None
            )
        case "bar":
            return parts.BarPlot(title=title, metrics=keys, groupby=number(by))
        case "parallel":
            columns = [parts.ParallelCoordinatesPlotColumn(number(key)) for key in keys]
            return parts.ParallelCoordinatesPlot(title=title, columns=columns)
        case "table":
            return parts.WeavePanelSummaryTable(table_name=keys[0])
    return parts.MediaBrowser(title=title, media_keys=keys)
