"""The components of the models that a study works on."""

from collections.abc import Sequence

import polars as pl

from experiments.common.sat69 import pinned
from experiments.common.study import Study
from experiments.common.values import resolved
from netkin.analysis.components import read_components, rows_of
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.zoo.build import Task
from netkin.zoo.components import component_table
from netkin.zoo.member import Member, parse_members

PUBLISHED = Task("imagenet", 1000, "pretrained")
"""The task of published models, of which components are read without a dataset."""


def components_of(s: Study) -> pl.DataFrame:
    """The components of a study's N models: the model's name, then a column per component.

    From the file `components=path.csv`, with the matrix (`similarity=sat69`), or from the models
    themselves. Raises UserError where
    neither is possible.
    """
    if s.config.components is not None:
        return from_file(s.config.components, s.names)
    if s.published is not None:
        return s.published.components
    if s.measured is not None:
        members, task = s.measured.members, s.measured.setting.task
    else:
        known = {**pinned(), **(resolved(s.config.model).get("known") or {})}
        try:
            members, task = parse_members(s.names, known, at_least=1), PUBLISHED
        except UserError as error:
            raise UserError(
                f"the components of the matrix's models are not known ({error}); give them with "
                "components=path.csv"
            ) from None
    with Bars(s.console) as bars:
        return read_off(members, task, bars)


def from_file(path: str, names: Sequence[str]) -> pl.DataFrame:
    """The components of some models from the file that the key `components` names."""
    return rows_of(read_components(path), names, f"components={path}")


def read_off(members: list[Member], task: Task, bars: Bars) -> pl.DataFrame:
    """The components of members, built for a task, with a progress bar."""
    bars.start("components", [member.name for member in members], len(members))
    table = component_table(members, task, lambda _: bars.advance("components", 1))
    bars.end("components")
    return table
