"""The 13 components of a network (the paper's Tab. 1, B.2 and B.3), for any model.

They are read from the model itself: from the operations of a traced forward pass
(`netkin.components.trace`) and from its tree of modules. No rule depends on a model's name.
The words are those of the paper's table: "7s2" is a 7 x 7 convolution of stride 2, "3s2/3/3" three
of 3 x 3, "~" means not applicable, "-" none.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING

import polars as pl

from netkin.errors import UserError, first_line
from netkin.zoo.member import Member, Task

if TYPE_CHECKING:  # a table of components is read without torch
    from torch import nn

COMPONENTS = (
    "Base architecture",
    "Hierarchical structure",
    "Stem layer",
    "Input resolution",
    "Normalization",
    "Activation",
    "Pooling (stem)",
    "Pooling (final)",
    "2D SA",
    "CW attention",
    "Location of CW attention",
    "DW conv",
    "Group conv",
)
"""Names of the components, in the order of the published table."""
ROOM = 64
"""Pixels a side. The last maps of smaller images may have a single place, where a layer cannot be
told from a gate, so a network that takes images of this size is read at it."""


@cache
def rules() -> str:
    """A hash of what components depend on besides the network: these files and the libraries."""
    total = sha256(" ".join(map(version, ("torch", "torchvision", "timm"))).encode())
    for file in sorted(files(__name__).iterdir(), key=lambda file: file.name):
        if file.name.endswith((".py", ".toml")):
            total.update(file.read_bytes())
    return total.hexdigest()


def read(net: "nn.Module", size: tuple[int, int, int]) -> dict[str, str]:
    """The 13 components of a classifier of images of size (channels, height, width).

    The network may be on any device; on torch's meta device nothing is computed but shapes.
    """
    from netkin.components import architecture, parts
    from netkin.components.stem import stem
    from netkin.components.trace import trace

    operations = trace(net, size)
    first = stem(operations)
    attention, location = parts.channel_attention(operations)
    return {
        "Base architecture": architecture.base_architecture(operations, first),
        "Hierarchical structure": architecture.hierarchy(operations, first),
        "Stem layer": first.layers,
        "Input resolution": f"{size[1]} x {size[2]}",
        "Normalization": parts.normalization(operations),
        "Activation": parts.activation(operations),
        "Pooling (stem)": _yes([first.pooled]),
        "Pooling (final)": parts.final_pooling(operations),
        "2D SA": architecture.attention_2d(operations),
        "CW attention": attention,
        "Location of CW attention": location,
        "DW conv": _yes(op.is_depthwise for op in operations.ops),
        "Group conv": _yes(op.is_grouped for op in operations.ops),
    }


def _yes(tests: Iterable[bool]) -> str:
    return "Yes" if any(tests) else "No"


def components(member: Member, task: Task) -> dict[str, str]:
    """The 13 components of a member, as it is built for a dataset.

    Raises UserError when it cannot be built, or a network that is not timm's cannot be traced.
    """
    from netkin.zoo.build import blueprint, preprocessing

    prep = preprocessing(member, task)
    side = prep.view.input_size
    net, _ = blueprint(member, task)
    if side < ROOM:
        with suppress(Exception):  # its size is fixed: whatever the network raises
            found = read(net, (len(prep.mean), ROOM, ROOM))
            return found | {"Input resolution": f"{side} x {side}"}
    try:
        return read(net, (len(prep.mean), side, side))
    except Exception as error:  # whatever a network of the user's raises
        if member.timm:
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"{member.name}: the components of {member.architecture} cannot be read from its "
            f"forward pass ({reason}); leave it out of the members"
        ) from None


def base_architecture(member: Member, task: Task) -> str:
    """CNN, Transformer, Hybrid, MLP-Mixer, NAS (CNN), NAS (TFM) or RNN; of a network of the user's
    own the member's family."""
    return member.family if member.target else components(member, task)["Base architecture"]


def component_table(
    members: Sequence[Member],
    task: Task,
    done: Callable[[str], None] = lambda name: None,
    read_off: Callable[[Member, Task], dict[str, str]] = components,
) -> pl.DataFrame:
    """One row a member: "Model name" and the components, which `read_off` gives. `done` is called
    with each name."""
    rows = []
    for member in members:
        rows.append({"Model name": member.name, **read_off(member, task)})
        done(member.name)
    return pl.DataFrame(
        rows, schema={"Model name": pl.String, **dict.fromkeys(COMPONENTS, pl.String)}
    )
