"""Where networks come from: timm, torchvision, transformers, or a class of one's own.

Each of these is a module with the functions of `Source`. Another one needs such a module, a line
in SOURCES, and a field of `netkin.zoo.member.Member`.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from netkin.errors import UserError, first_line
from netkin.zoo import from_python, from_timm, from_torchvision, from_transformers
from netkin.zoo.task import Task

if TYPE_CHECKING:
    from netkin.zoo.member import Member


class Source(Protocol):
    """What a source of networks does with a name of its own."""

    def config(self, name: str) -> dict[str, Any]:
        """What is published under a name, in the words of timm's pretrained_cfg: preprocessing,
        num_classes, and where the weights are. Beside these: `family`, the group of architectures.

        Raises UserError where there is no such architecture.
        """
        ...

    def file(self, name: str, config: Mapping[str, Any], fetch: bool) -> Path | None:
        """The file of the published weights; None where it is not on this machine.

        With `fetch` it is downloaded then. Raises what the library's client raises.
        """
        ...

    def ways(
        self, member: "Member", config: Mapping[str, Any], task: Task, size: int
    ) -> list[dict[str, Any]]:
        """The arguments to build a network with, in the order in which they are tried.

        Args:
            member: whose own arguments have precedence.
            config: of its published weights, if the network is to be as published; else empty.
            task: the dataset.
            size: pixels a side of its images.
        """
        ...

    def build(
        self,
        member: "Member",
        config: Mapping[str, Any],
        kwargs: Mapping[str, Any],
        file: Path | None,
    ) -> nn.Module:
        """The network, with the published weights of `file` unless that is None.

        Raises what the library raises.
        """
        ...


SOURCES: dict[str, Source] = {
    "timm": from_timm,
    "torchvision": from_torchvision,
    "transformers": from_transformers,
    "target": from_python,
}
"""By the field of a member that names its architecture."""


def _split(source: str) -> tuple[Source, str]:
    """The source and the name in it of "torchvision:name", and so on, or timm's name."""
    kind, colon, name = source.partition(":")
    return (SOURCES[kind], name) if colon and kind in SOURCES else (from_timm, source)


@cache
def config(source: str) -> dict[str, Any]:
    """What is published of `architecture.tag`, `hf-hub:org/name` or `local-dir:folder` of timm's,
    of `torchvision:name`, `transformers:name` or `target:module.name`; see `Source.config`.

    Raises UserError when there is no such name, or its config.json cannot be read.
    """
    library, name = _split(source)
    try:
        with quiet_hub():
            return library.config(name)
    except UserError:
        raise
    except Exception as error:  # the hub's client, json and timm have their own
        raise UserError(
            f"{source}: its config.json cannot be read ({type(error).__name__}: "
            f"{first_line(error)}); expected a model in the format of timm or transformers, on the "
            "hub or in a local folder"
        ) from None


def file(source: str, fetch: bool = False) -> Path | None:
    """The file of published weights on this machine; see `Source.file`."""
    library, name = _split(source)
    with quiet_hub():
        return library.file(name, config(source), fetch)


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Without the hub client's warnings about its retries, for the block's time."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
