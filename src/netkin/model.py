"""Models of a run: members of a zoo, opened once with their weights and preprocessing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from netkin.data.views import View
from netkin.errors import UserError
from netkin.jobs.progress import Bars
from netkin.store.files import damaged, digest, file_sha256
from netkin.store.layout import check_weights
from netkin.zoo.build import (
    Classifier,
    build,
    check_member,
    identity,
    preprocessing,
    weights_sha256,
)
from netkin.zoo.member import Member, Task
from netkin.zoo.preprocessing import Preprocessing, trained_here


@dataclass(frozen=True)
class Model:
    """A member of a zoo for one task.

    Attributes:
        member: what the user wrote for it.
        task: what it is built for.
        weights: its weights file, whether or not it exists yet; None where published weights have
            not been fetched, or the member's own class or function brings them.
        sha256: of published weights, which is known without reading them.
        lacks: why its checkpoint or its published weights cannot be had, if they cannot.
    """

    member: Member
    task: Task
    weights: Path | None
    sha256: str | None = None
    lacks: str = ""

    @property
    def name(self) -> str:
        """What tables, figures and the store call it."""
        return self.member.name

    @property
    def family(self) -> str:
        """The group of architectures that it counts to."""
        return self.member.family

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """Resize, crop, mean and standard deviation."""
        return preprocessing(self.member, self.task)

    @property
    def view(self) -> View:
        return self.preprocessing.view

    @property
    def brings_weights(self) -> bool:
        """Whether its class or function comes with weights, so that there is no file."""
        return bool(self.member.target) and self.member.uses_published(self.task)

    @property
    def has_weights(self) -> bool:
        """Whether it can be run: its weights are there, or it brings them."""
        return self.brings_weights if self.weights is None else self.weights.is_file()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Architecture, arguments, hash of the weights and preprocessing, as JSON.

        It is read once, from weights that must exist.
        """
        return identity(self.member, self.task, self._weights_sha256())

    @cached_property
    def digest(self) -> str:
        return digest(self.identity)

    def _weights_sha256(self) -> str:
        if self.sha256 is not None:
            return self.sha256
        if self.brings_weights:
            return weights_sha256(self.build().net)
        assert self.weights is not None, f"weights of {self.name} have not been fetched"
        if trained_here(self.weights):
            check_weights(self.weights)
        return file_sha256(self.weights)

    def build(self) -> Classifier:
        """The classifier with its weights.

        Raises UserError where they do not fit it, DamagedFile where a file of the hub's cache does
        not fit the hash that is its name.
        """
        file = self.weights
        if file is not None and self.sha256 == file.resolve().name != file_sha256(file):
            raise damaged(file, "its bytes do not fit the hash in its name")
        return build(self.member, self.task, self.weights)


def open_model(member: Member, task: Task, trained: Callable[[str, str], Path]) -> Model:
    """A model without a check of its weights, which may have to be trained or fetched.

    Args:
        member, task: see `Model`.
        trained: the path of weights that are trained here, by dataset and name, such as
            `netkin.store.layout.Store.weights`.
    """
    if member.checkpoint:
        return Model(member, task, Path(member.checkpoint).expanduser())
    if member.uses_published(task):
        return Model(member, task, None)
    return Model(member, task, trained(task.dataset, member.name))


def open_models(
    members: Sequence[Member],
    task: Task,
    trained: Callable[[str, str], Path],
    display: Bars,
    checked: bool = True,
    complete: bool = True,
) -> list[Model]:
    """The models of members, with the files of published weights.

    Args:
        members, task, trained: see `open_model`.
        display: of the progress of downloads.
        checked: whether members that are no published or trained timm models are built once.
        complete: whether missing weights are an error, and not noted in `Model.lacks`.

    Raises UserError that lists every member whose checkpoint or published weights are missing, and
    for the first one that cannot be built, does not fit its checkpoint, or has other classes.
    """
    models = [open_model(member, task, trained) for member in members]
    absent = {
        m.name: f"{m.weights} (of {m.name}"
        f"{'; it is a folder' if m.weights and m.weights.is_dir() else ''})"
        for m in models
        if m.member.checkpoint and not m.has_weights
    }
    if absent and complete:
        raise UserError(f"there is no checkpoint {', '.join(absent.values())}")
    lacking = {name: f"there is no checkpoint {file}" for name, file in absent.items()}
    for model in models if checked else ():
        file = model.weights if model.member.checkpoint else None
        untried = not trained_here(file) if file else not model.member.timm
        if untried:
            check_member(model.member, task)
    names = {m.name: m.source for m in members if m.uses_published(task) and m.source}
    files = {}
    if names:
        from netkin.zoo import sources

        display.start("weights", list(names), len(names))
        for name, path, sha256 in sources.fetch(names, None if complete else lacking):
            files[name] = path, sha256
            display.advance("weights", 1)
        display.end("weights")
    return [
        replace(m, weights=w[0], sha256=w[1])
        if (w := files.get(m.name))
        else replace(m, lacks=lacking.get(m.name, ""))
        for m in models
    ]
