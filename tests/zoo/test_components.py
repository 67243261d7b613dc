"""Components against the published table, other known models, and modules made of others."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import timm
import torch
from omegaconf import OmegaConf
from timm.layers import SelectAdaptivePool2d
from timm.models.metaformer import SquaredReLU, StarReLU
from torch import Tensor, nn
from torch.nn import functional

from netkin.analysis.components import agreement, read_components, rows_of
from netkin.components import base_architecture, component_table, components, read
from netkin.components.trace import trace
from netkin.errors import UserError
from netkin.zoo.member import Member, Task
from netkin.zoo.parse import parse_members
from tests.conftest import ROOT

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
PUBLISHED = Task("imagenet", 1000, "pretrained")

UNSEEN = read_components(Path(__file__).with_name("components_unseen.csv")).rows(named=True)
"""What their papers and code say of models that the published table lacks. Columns as in it,
without the input size, which is timm's own."""


def blank(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def own_size(net: nn.Module) -> tuple[int, int, int]:
    cfg: Any = net.pretrained_cfg
    return cfg["input_size"]


@pytest.mark.slow
@pytest.mark.parametrize("row", UNSEEN, ids=lambda row: row["Model name"])
def test_models_that_the_table_does_not_have(row: dict[str, str]) -> None:
    net = blank(row["Model name"])
    size = own_size(net)
    found = read(net, size)
    assert found.pop("Input resolution") == f"{size[1]} x {size[2]}"
    assert {"Model name": row["Model name"], **found} == row


def documented() -> set[tuple[str, ...]]:
    """The disagreements that experiments/results/components.md explains."""
    text = (ROOT / "experiments" / "results" / "components.md").read_text()
    _, table = text.split("The ten cells that differ:")
    lines = re.findall(r"^\| (\w+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", table, re.M)
    return {row for row in lines if row[0] != "model"}


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the published data are not beside the project")
def test_the_published_table() -> None:
    """Its 897 cells: all agree but those that are listed, each with its reason."""
    config = OmegaConf.load(ROOT / "conf" / "model" / "imagenet69.yaml")
    members = parse_members(list(config.members), OmegaConf.to_container(config.known))  # type: ignore[arg-type]
    read_names: list[str] = []
    ours = component_table(members, PUBLISHED, read_names.append)
    names = [member.name for member in members]
    assert read_names == names == ours["Model name"].to_list()
    theirs = rows_of(read_components(REFERENCE / "components69.csv"), names, "the table")
    counts, differ = agreement(ours, theirs)
    assert set(differ.iter_rows()) == documented()
    assert counts["cells"].sum() == 897
    assert counts["agree"].sum() == 897 - len(documented()) >= 0.95 * 897


class Wrapped(nn.Module):
    """A network inside others, with names without meaning."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.thing = net

    def forward(self, x: Tensor) -> Tensor:
        return self.thing((x - 0.5) / 0.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["dla34", "hrnet_w18_small", "vit_tiny_r_s16_p8_224", "halonet26t"]
)
def test_what_is_around_a_network_changes_nothing(name: str) -> None:
    net = blank(name)
    assert read(Wrapped(Wrapped(net)), own_size(net)) == read(net, own_size(net))


class Squeeze(nn.Module):
    """A block of one's own, without a telling name: convolution, gate, convolution, shortcut."""

    def __init__(self, width: int, groups: int, kernel: int):
        super().__init__()
        self.a = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups)
        self.b, self.c = nn.Linear(width, 4), nn.Linear(4, width)
        self.d = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        gate = self.c(torch.nn.functional.mish(self.b(y.mean((2, 3))))).sigmoid()
        return x + self.d(y * gate[:, :, None, None])


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 5, 3)
        self.two = nn.Sequential(Squeeze(8, 8, 3), nn.AvgPool2d(2), Squeeze(8, 4, 3))
        self.three = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.three(self.two(nn.functional.instance_norm(self.one(x))).amax((2, 3)))


def test_a_network_of_ones_own_on_the_cpu() -> None:
    net = Own().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert read(net, (3, 48, 48)) == {
        "Base architecture": "CNN",
        "Hierarchical structure": "Yes",
        "Stem layer": "5s3",
        "Input resolution": "48 x 48",
        "Normalization": "BN",  # what PyTorch makes of an instance norm without a module
        "Activation": "Mish",
        "Pooling (stem)": "No",
        "Pooling (final)": "Max",
        "2D SA": "No",
        "CW attention": "Yes (SE)",
        "Location of CW attention": "Middle",
        "DW conv": "Yes",
        "Group conv": "Yes",
    }
    assert net.training and all(not m._forward_hooks for m in net.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_the_meta_device_and_the_cpu_agree() -> None:
    for name in ("test_vit", "test_coatnet", "test_nfnet"):
        assert read(timm.create_model(name), (3, 160, 160)) == read(blank(name), (3, 160, 160))


def test_a_trace_knows_channels_and_places() -> None:
    found = trace(blank("mixer_s32_224"), (3, 224, 224))
    mixing = [op for op in found.ops if op.mixes_positions]
    assert len(mixing) == 2 * 8 and {op.path.split(".")[2] for op in mixing} == {"mlp_tokens"}
    (stem, *_) = [op for op in found.ops if op.is_conv]
    assert (stem.width, stem.positions, stem.kernel, stem.stride) == (512, 49, (32, 32), (32, 32))
    assert found.ops[found.output].shape == (1, 1000)
    swin = trace(blank("swin_tiny_patch4_window7_224"), (3, 224, 224))
    layers = [op for op in swin.ops if op.path.endswith("mlp.fc1") and op.is_dense]
    assert [op.positions for op in layers] == [3136] * 2 + [784] * 2 + [196] * 6 + [49] * 2


def test_members_are_read_as_they_are_built_for_a_dataset() -> None:
    digits = Task(
        "digits", 10, "train", 32, ({"img_size": 32, "patch_size": 8}, {"img_size": 32}, {})
    )
    found = components(Member("vit", "vit_tiny_patch16_224"), digits)
    assert (found["Stem layer"], found["Input resolution"]) == ("8s8", "32 x 32")
    assert base_architecture(Member("cnn", "test_resnet"), digits) == "CNN"
    with pytest.raises(UserError, match="cannot be built for 32 x 32 images"):
        components(Member("no", "test_resnet", {"depth": 3}), digits)


def test_tables_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "components.csv"
    file.write_text("name,colour,legs\na, red,4\nb,blue,\n")
    table = read_components(file)
    assert table.rows() == [("a", "red", "4"), ("b", "blue", "")]
    assert rows_of(table, ["b", "a"], "it")["name"].to_list() == ["b", "a"]
    with pytest.raises(UserError, match=r"it lacks 1 of the 2 models: c"):
        rows_of(table, ["a", "c"], "it")
    counts, differ = agreement(table, table.with_columns(pl.lit("4").alias("legs")))
    assert counts["agree"].to_list() == [2, 1]
    assert differ.rows() == [("b", "legs", "", "4")]
    for text, said in (
        ("", "cannot be read .*; expected a CSV file, models in the first column"),
        ("name\na\n", "has 1 models and 0 components"),
        ("name,colour\na,red\na,blue\n", "has more than one row of a"),
        ("name,colour\na,red\n,blue\n", "row 3 has no model"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            read_components(file)
    with pytest.raises(UserError, match=r"cannot be read .*; expected a CSV file"):
        read_components(tmp_path / "none.csv")


SIZE = (3, 32, 32)


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x))


class Net(nn.Module):
    """A stem, residual blocks, and a head."""

    def __init__(self, act: nn.Module | None = None, pool: nn.Module | None = None):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.enter = nn.Sequential(nn.LazyConv2d(8, 3, padding=1), act or nn.ReLU())
        self.blocks = nn.Sequential(*(Shortcut() for _ in range(4)))
        self.pool = pool or nn.AdaptiveAvgPool2d(1)
        self.head = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.enter(self.stem(x)))
        return self.head(self.pool(x).flatten(1))


def found(net: nn.Module) -> dict[str, str]:
    net(torch.zeros(2, *SIZE))  # gives lazy layers their sizes
    return read(net, SIZE)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) * 1.7


class Wave(nn.Module):
    """Two activations in one, with a name that no list has."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.SiLU(), Scaled()

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) * self.two(x)


class Inline(nn.Module):
    """Layers beside the activation: no activation as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(8), nn.Mish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x)) + functional.relu(x) ** 2


class Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=1)
        return torch.cat((functional.silu(one) * two, two.sigmoid() * one), dim=1)


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (StarReLU(), "StarReLU"),
        (SquaredReLU(), "SquaredReLU"),
        (nn.Sequential(nn.ReLU(), nn.Dropout()), "ReLU"),
        (Scaled(), "GeLU"),  # a factor makes no other activation
        (Wave(), "Wave"),
        (Inline(), "Mish + SquaredReLU"),
        (Gated(), "SiLU"),
        (nn.Sigmoid(), "-"),
    ],
)
def test_an_activation_of_others_is_one(act: nn.Module, name: str) -> None:
    assert found(Net(act).eval())["Activation"] == name


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        ("avg", "GAP"),
        ("max", "Max"),
        ("avgmax", "GAP + Max"),
        ("catavgmax", "GAP + Max"),
        ("fastavgmax", "GAP + Max"),
        ("fastcatavgmax", "GAP + Max"),
    ],
)
def test_parallel_pools_before_the_classifier(kind: str, pooling: str) -> None:
    pool = SelectAdaptivePool2d(pool_type=kind)
    assert found(Net(pool=pool).eval())["Pooling (final)"] == pooling
