"""What a network is made of: the 13 components of the paper (Tab. 1, B.2 and B.3), for any model.

They are read off the model itself, from what a traced forward pass does to an image's shape
(`netkin.zoo.components.trace`) and from the tree of its modules; no name of a model is known here.
The words are those of the paper's table: "7s2" is a 7 x 7 convolution of stride 2, "3s2/3/3" three
of 3 x 3, "~" means not applicable, "-" none.
"""

from collections.abc import Callable, Sequence

import polars as pl
from torch import nn

from netkin.zoo.build import Task, blueprint, preprocessing
from netkin.zoo.components import gates, mixing, parts
from netkin.zoo.components.stem import stem
from netkin.zoo.components.trace import trace
from netkin.zoo.member import Member

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


def read(net: nn.Module, size: tuple[int, int, int]) -> dict[str, str]:
    """The 13 components of a classifier of images of size (channels, height, width).

    The network may be on any device; on torch's meta device nothing is computed but shapes.
    """
    found = trace(net, size)
    first = stem(found)
    attention, location = gates.channel_attention(found)
    return {
        "Base architecture": mixing.base_architecture(found, first),
        "Hierarchical structure": mixing.hierarchy(found, first),
        "Stem layer": first.layers,
        "Input resolution": f"{size[1]} x {size[2]}",
        "Normalization": parts.normalization(found),
        "Activation": parts.activation(found),
        "Pooling (stem)": "Yes" if first.pooled else "No",
        "Pooling (final)": parts.final_pooling(found),
        "2D SA": mixing.attention_2d(found),
        "CW attention": attention,
        "Location of CW attention": location,
        "DW conv": parts.any_op(found, lambda op: op.is_depthwise),
        "Group conv": parts.any_op(found, lambda op: op.is_grouped),
    }


def components(member: Member, task: Task) -> dict[str, str]:
    """The 13 components of a member, as it is built for a dataset.

    Raises UserError when it cannot be built.
    """
    own = preprocessing(member, task)
    side = own.view.input_size
    return read(blueprint(member, task), (len(own.mean), side, side))


def base_architecture(member: Member, task: Task) -> str:
    """CNN, Transformer, Hybrid, MLP-Mixer, NAS (CNN), NAS (TFM) or RNN."""
    return components(member, task)["Base architecture"]


def component_table(
    members: Sequence[Member], task: Task, done: Callable[[str], None] = lambda name: None
) -> pl.DataFrame:
    """One row a member: "Model name" and the components. `done` hears of each as it is read."""
    rows = []
    for member in members:
        rows.append({"Model name": member.name, **components(member, task)})
        done(member.name)
    return pl.DataFrame(
        rows, schema={"Model name": pl.String, **dict.fromkeys(COMPONENTS, pl.String)}
    )
