"""Members as users write them, and the classifiers built of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from timm.models._registry import get_deprecated_models

from netkin.errors import UserError
from netkin.runner import resized
from netkin.zoo import sources
from netkin.zoo.build import Task, build, identity, knows_more, preprocessing
from netkin.zoo.families import read_off, timm_family
from netkin.zoo.member import Member
from netkin.zoo.parse import parse_members
from netkin.zoo.sources import fetch

DIGITS = Task(
    "digits",
    num_classes=10,
    input_size=32,
    fit=({"img_size": 32, "patch_size": 8}, {"img_size": 32}, {}),
)

IMAGENET = Task("imagenet", num_classes=1000, weights="pretrained")


def test_names_and_mappings() -> None:
    """Families that differ in case only are one."""
    members = parse_members(
        [
            "test_vit",
            {"name": "mine", "timm": "resnet18.a1_in1k", "family": "R"},
            "vit_ti",
            {"timm": "test_resnet", "family": "r", "kwargs": {"in_chans": 1}},
        ],
        known={"vit_ti": {"timm": "vit_tiny_patch16_224", "kwargs": {"depth": 2}}},
    )
    assert [m.name for m in members] == ["test_vit", "mine", "vit_ti", "test_resnet"]
    assert [m.family for m in members] == ["vision_transformer", "R", "vision_transformer", "R"]
    assert members[2].kwargs == {"depth": 2} and members[3].in_chans == 1
    assert build(members[3], DIGITS).eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)


NET = "tests.zoo.own_nets.Net"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["resnet5O", "test_vit"], r"no model 'resnet5O'; did you mean resnet50"),
        (["vit_tii", "test_vit"], r"no model 'vit_tii'; did you mean vit_ti"),
        (["resnet50.a1_in2k", "test_vit"], r"no weights tagged 'a1_in2k'; did you mean a1_in1k"),
        (["my_pkg.MyNet"], r"no model 'my_pkg.MyNet'"),
        (["torchvision:resnet81"], r"no classifier 'resnet81'; did you mean resnet"),
        (["torchvision:fcn_resnet50"], r"no classifier 'fcn_resnet50'"),
        (["torchvision:resnet50.IMAGENET1K_V3"], r"no weights .* did you mean IMAGENET1K_V"),
        (["test_vit"], r"names 1 model, expected 2 or more"),
        (["test_vit", "test_resnet", "test_vit"], r"names test_vit more than once"),
        ([{"name": "x"}], r"lacks `timm`"),
        ([{"timm": "test_vit", "kwarg": {}}], r"no field 'kwarg'; did you mean"),
        ([3], r"a member is a name or a mapping .* got 3"),
        ([{"timm": "test_vit", "name": 3}], "name must be text"),
        ([{"timm": "test_vit", "kwargs": [1]}], "kwargs must be a mapping"),
        ([{"timm": "test_vit", "checkpoint": 3}], "checkpoint must be a file"),
        ([{"timm": "test_vit", "input_size": 0}], "input_size must be a whole number"),
        ([{"timm": "test_vit", "crop_pct": 1.5}], r"crop_pct must be in \(0, 1\]"),
        ([{"timm": "test_vit", "interpolation": "cubic"}], "interpolation must be nearest or"),
        ([{"timm": "test_vit", "mean": [0.5, 0.5], "std": 1}], "mean must be 1 or 3 numbers"),
        ([{"timm": "test_vit", "mean": 0.5, "std": 0}], "std must be 1 or 3 numbers above 0"),
        ([{"timm": "test_vit", "mean": 0.5}], "give both mean and std, or neither"),
        ([{"timm": "test_vit", "in_chans": 2}], "in_chans must be 1 or 3"),
        ([{"timm": "test_vit", "pretrained": "yes"}], "pretrained must be True or False"),
        ([{"_target_": NET, "timm": "test_vit"}], "give one of them"),
        ([{"_target_": "no_such_pkg.Net"}], r"no module no_such_pkg .*PYTHONPATH"),
        (
            [{"_target_": "tests.zoo.own_nets.Nett"}],
            r"no class or function 'Nett'; did you mean",
        ),
        ([{"_target_": "Net"}], r"_target_ must be a dotted name"),
        (
            [{"_target_": "tests.zoo.own_nets.SOMETHING"}],
            r"or function 'SOMETHING': it is 3",
        ),
    ],
)
def test_mistakes(entries: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_members(entries, {"vit_ti": {"timm": "vit_tiny_patch16_224"}})


@pytest.mark.parametrize("name", ["test_vit", "test_coatnet", "test_resnet"])
def test_any_architecture_takes_small_images(name: str) -> None:
    (member,) = parse_members([name], at_least=1)
    a, b, c = (build(member, DIGITS, seed=seed).eval() for seed in (0, 0, 1))
    assert a(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    first = [next(p for p in m.net.parameters() if p.std() > 0) for m in (a, b, c)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_pretrained_members_keep_their_own_preprocessing() -> None:
    own = preprocessing(Member("c", "convnext_tiny.in12k_ft_in1k"), IMAGENET)
    cfg: Any = timm.get_pretrained_cfg("convnext_tiny.in12k_ft_in1k")
    assert (own.view.input_size, own.mean) == (cfg.input_size[-1], cfg.mean)
    assert (own.view.crop_pct, own.view.interpolation) == (cfg.crop_pct, cfg.interpolation)


def test_what_cannot_be_built_for_a_dataset_is_refused() -> None:
    with pytest.raises(UserError, match=r"bad \(test_vit\) cannot be built for 32 x 32 images"):
        build(Member("bad", "test_vit", kwargs={"depths": 3}), DIGITS)
    member = Member("many", "test_resnet", kwargs={"num_classes": 1000})
    with pytest.raises(UserError, match="many has 1000 classes, digits has 10"):
        build(member, DIGITS)


def test_identity_tells_weights_arguments_and_preprocessing_apart() -> None:
    base = identity(Member("a", "test_vit"), DIGITS, "0" * 64)
    assert base == identity(Member("other name", "test_vit"), DIGITS, "0" * 64)
    for other in (
        identity(Member("a", "test_vit2"), DIGITS, "0" * 64),
        identity(Member("a", "test_vit", kwargs={"depth": 2}), DIGITS, "0" * 64),
        identity(Member("a", "test_vit"), DIGITS, "1" * 64),
        identity(Member("a", "test_vit", input_size=64), DIGITS, "0" * 64),
    ):
        assert other != base


def folders_of(*wnids: str) -> Task:
    return Task("part", len(wnids), weights="pretrained", classes=wnids)


def test_a_part_of_imagenet_is_read_at_its_classes(tmp_path: Path) -> None:
    wnids = ImageNetInfo().label_names()
    net = timm.create_model("test_resnet").eval()
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    member = Member("r", "test_resnet.r160_in1k")
    classifier = build(member, folders_of(wnids[7], wnids[3]), tmp_path / "weights.safetensors")
    pixels = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        logits = classifier.eval()(pixels)
        wanted = net((pixels - classifier.mean) / classifier.std)
    torch.testing.assert_close(logits, wanted[:, [7, 3]])
    assert knows_more(member, folders_of(wnids[7], wnids[3]))
    whole = build(member, folders_of(*wnids), tmp_path / "weights.safetensors")
    assert whole.columns is None and not knows_more(member, folders_of(*wnids))


@pytest.mark.parametrize("classes", [("cat", "dog"), ("n01440764", "n99999999")])
def test_other_classes_are_refused(classes: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=r"r has 1000 classes, part has 2: .* WordNet id"):
        build(Member("r", "test_resnet.r160_in1k"), folders_of(*classes))


def test_the_original_authors_layout_is_converted(tmp_path: Path) -> None:
    """timm's filter for ViTs takes a patch embedding that was a linear layer."""
    net = timm.create_model("test_vit", num_classes=10, img_size=32, patch_size=8).eval()
    state = net.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    torch.save({"model": state}, tmp_path / "old.pth")
    classifier = build(Member("v", "test_vit"), DIGITS, tmp_path / "old.pth").eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(classifier.net(images), net(images))


@pytest.mark.parametrize(("size", "interpolation"), [(224, "bilinear"), (299, "bicubic")])
def test_a_160_px_source_and_larger_targets(size: int, interpolation: str) -> None:
    """Whole images in [0, 1] of the target's size: a bright edge stays on every side."""
    images = torch.zeros(2, 3, 160, 160, dtype=torch.uint8)
    images[..., :8, :] = images[..., -8:, :] = images[..., :8] = images[..., -8:] = 255
    pixels = resized(images, size, interpolation)
    assert pixels.shape == (2, 3, size, size)
    assert pixels.min() >= 0 and pixels.max() <= 1
    edge, width = 8 * size // 160 - 3, 8 * size / 160
    for side in (pixels[..., :edge, :], pixels[..., -edge:, :], pixels[..., :edge]):
        assert (side > 0.99).all()
    # As much of each row is bright as before: nothing was cropped, nothing was stretched.
    assert pixels[0, 0, size // 2].sum().item() == pytest.approx(2 * width, abs=0.5)
    assert torch.equal(resized(images, 160, interpolation), images / 255)


def local_dir(folder: Path, **changes: object) -> str:
    """A model in timm's format, as `local-dir:`, its config changed."""
    net = timm.create_model("test_resnet", num_classes=10)
    config = {
        "architecture": "test_resnet",
        "num_classes": 10,
        "pretrained_cfg": {"input_size": [3, 64, 64], "num_classes": 10},
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    save_file(net.state_dict(), folder / "model.safetensors")
    sources.published.cache_clear()
    return f"local-dir:{folder}"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "test_foo"}, "timm has no architecture 'test_foo'"),
        ({"pretrained_cfg": [], "num_classes": 1}, r"config\.json cannot be read"),
    ],
)
def test_a_wrong_config_of_a_local_model(tmp_path: Path, changes: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_members([local_dir(tmp_path / "mine", **changes)], at_least=1)


def test_the_weights_of_a_local_model(tmp_path: Path) -> None:
    """They keep their classes, and where they are missing, the hub's are not taken."""
    name = local_dir(tmp_path / "mine")
    weights = tmp_path / "mine" / "model.safetensors"
    task = Task("three", 3, weights="pretrained")
    with pytest.raises(UserError, match=r"kwargs\.num_classes=3 would put a layer of random"):
        build(Member("m", name, {"num_classes": 3}), task, weights)
    sources.config(name)["hf_hub_id"] = "timm/test_resnet.r160_in1k"
    weights.unlink()
    with pytest.raises(
        UserError, match=r"mine holds no weights, such as model\.safetensors or pytorch"
    ):
        list(fetch({"mine": name}))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_timm_exports_is_a_member(tmp_path: Path, channels: int) -> None:
    """Its config repeats classes and channels as arguments."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=7, in_chans=channels)
    timm.models.save_for_hf(net, str(tmp_path), safe_serialization=True)
    member, task = Member("m", f"local-dir:{tmp_path}"), Task("seven", 7, weights="pretrained")
    classifier = build(member, task, tmp_path / "model.safetensors").eval()
    gray = torch.rand(2, 1, 160, 160).expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected = net.eval()((gray[:, :channels] - classifier.mean) / classifier.std)
        torch.testing.assert_close(classifier(gray), expected)
    with pytest.raises(UserError, match=r"kwargs\.in_chans=4 would put a layer of random"):
        build(Member("m", member.timm, {"in_chans": 4}), task, tmp_path / "model.safetensors")


def test_the_arguments_in_a_config_are_part_of_a_model(tmp_path: Path) -> None:
    task = Task("ten", 10, weights="pretrained")
    before = identity(Member("m", local_dir(tmp_path / "mine")), task, "same")
    name = local_dir(tmp_path / "mine", model_args={"global_pool": "max"})
    assert identity(Member("m", name), task, "same") != before


def test_another_input_size_of_published_weights(tmp_path: Path) -> None:
    for name, size, fits in (
        ("test_resnet", 96, True),
        ("test_vit", 96, True),
        ("test_vit", 95, False),
    ):
        member = Member("m", name, checkpoint="x", input_size=size)
        file = tmp_path / f"{name}.safetensors"
        kwargs: dict[str, Any] = {"img_size": size} if name == "test_vit" and fits else {}
        save_file(timm.create_model(name, **kwargs).state_dict(), file)
        if fits:
            assert build(member, IMAGENET, file)(torch.rand(1, 3, size, size)).shape == (1, 1000)
        else:
            with pytest.raises(UserError, match=r"m \(test_vit\) cannot be built"):
                build(member, IMAGENET, file)


def test_families_are_read_off_timms_files_as_it_registers_them() -> None:
    renamed = get_deprecated_models()
    for name in {*timm.list_models(), *renamed}:
        architecture = (renamed.get(name) or name).partition(".")[0]
        module = timm.model_entrypoint(architecture).__module__
        assert read_off()[name] == timm_family(name) == module.split(".")[-1]
    assert timm_family("vit_tiny_patch16_224.augreg_in21k") == "vision_transformer"
    assert timm_family("none_such") == "unknown"
