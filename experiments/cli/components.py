"""The components of the models that a study works on."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import SequenceMatcher

import numpy as np
import polars as pl

from experiments.cli.sat69 import pinned
from experiments.cli.study import Study
from experiments.cli.values import resolved
from netkin.analysis.components import read_components, rows_of
from netkin.analysis.matrix import position_of
from netkin.components import COMPONENTS, component_table, components
from netkin.errors import UserError, near
from netkin.jobs.progress import Bars
from netkin.zoo.member import Member, Task

PUBLISHED = Task("imagenet", 1000, "pretrained")
"""The task of published models, of which components are read without a dataset."""
BASE = COMPONENTS[0]
"""The component that colours of figures stand for."""
LARGE = 150
"""Models of a file whose names are looked up one by one for colours, at most."""
_READ: dict[str, pl.DataFrame] = {}
"""Tables that were read off, by members and task: a study asks for components and bases apart."""


def components_of(s: Study) -> pl.DataFrame:
    """The components of a study's N models: the model's name, then a column per component.

    From the file `components=path.csv`, with the matrix (`similarity=sat69`), or from the models
    themselves. Raises UserError where none of these is possible.
    """
    if s.config.get("components") is not None:
        return from_file(s.config.components, s.names)
    if s.published is not None:
        return s.published.components
    if s.measured is not None:
        results, of = s.measured.results, {model.name: model for model in s.measured.members}
        members, task = [model.member for model in of.values()], s.measured.evaluation.task
        with Bars(s.console) as bars:
            return read_off(members, task, bars, lambda m, _: results.components(of[m.name]))
    try:
        members = _published(s, s.names)
    except UserError as error:
        raise UserError(
            f"the components of the matrix's models are not known ({error}); give them with "
            "components=path.csv"
        ) from None
    with Bars(s.console) as bars:
        return read_off(members, PUBLISHED, bars)


def known_components(s: Study) -> tuple[pl.DataFrame | None, str]:
    """`components_of`, or the reason why they are not known; a bad file is an error."""
    try:
        return components_of(s), ""
    except UserError as error:
        if s.config.get("components") is not None:
            raise
        return None, str(error)


def bases_of(s: Study) -> list[str]:
    """The base architecture of each of a study's N models; the family where it is not known."""
    table, _ = known_components(s)
    if table is not None and BASE in table.columns:
        return table[BASE].to_list()
    bases = list(s.families)
    if s.measured is None and len(s.names) <= LARGE:  # timm may have some of a file's names
        for i, name in enumerate(s.names):
            with suppress(UserError):
                bases[i] = component_table(_published(s, [name]), PUBLISHED)[BASE][0]
    return bases


def _published(s: Study, names: Sequence[str]) -> list[Member]:
    """Members by names of timm or of model.known. Raises UserError where one is neither."""
    from netkin.zoo.parse import parse_members

    known = {**pinned(), **(resolved(s.config.model).get("known") or {})}
    return parse_members(names, known, at_least=1)


def stand_in(s: Study, name: str, what: str) -> tuple[int, list[str]]:
    """The position of a model in a study's matrix, and a sentence where it is another's.

    A model that a matrix from a file lacks is represented by the one that shares most components
    with it; of several by one of its family, or with the most similar name. Raises UserError, which
    `what` begins, for a name that is not in the matrix, timm's, or in model.known.
    """
    tags = () if s.published is None else s.published.timm
    same = [i for i, tag in enumerate(tags) if name in (tag, tag.partition(".")[0])]
    if name in s.names or same:
        return s.names.index(name) if name in s.names else same[0], []
    if s.measured is not None:
        return position_of(name, s.names, what), []
    try:
        (member,) = _published(s, [name])
        table = components_of(s)
    except UserError as error:
        raise UserError(f"{what} has no model {name!r}{near(name, s.names)}, and {error}") from None
    with Bars(s.console) as bars:
        row = read_off([member], PUBLISHED, bars)
    shared = [c for c in table.columns[1:] if c in row.columns]
    counts = (table.select(shared).to_numpy() == row.select(shared).to_numpy()).sum(axis=1)
    alike = [SequenceMatcher(None, member.architecture, other).ratio() for other in s.names]
    family = [other == member.family for other in s.families]
    best = max(range(len(s.names)), key=lambda i: (counts[i], family[i], alike[i]))
    ties = [s.names[i] for i in np.flatnonzero(counts == counts[best]) if i != best]
    shares = f"with which it shares {counts[best]} of {len(shared)} components"
    text = f"{name} is not in the matrix. It is represented by {s.names[best]}, {shares}."
    if ties:
        text += (
            f" {', '.join(ties)} share{'s' * (len(ties) == 1)} as many: family and name decided "
            "between these, and another of them may give another answer."
        )
    return best, [text]


def from_file(path: str, names: Sequence[str]) -> pl.DataFrame:
    """The components of some models from the file that the key `components` names."""
    return rows_of(read_components(path), names, f"components={path}")


def read_off(
    members: list[Member],
    task: Task,
    bars: Bars,
    of: Callable[[Member, Task], dict[str, str]] = components,
) -> pl.DataFrame:
    """The components of members, built for a task, with a progress bar; `of` is of one."""
    key = repr((members, task))
    if key not in _READ:
        bars.start("components", [member.name for member in members], len(members))
        _READ[key] = component_table(members, task, lambda _: bars.advance("components", 1), of)
        bars.end("components")
    return _READ[key]
