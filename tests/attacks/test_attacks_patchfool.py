"""Patch-Fool against a straightforward implementation: loops, finite differences, Adam by hand."""

import math
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from netkin.attacks import PatchFool
from netkin.attacks.patchfool import without_conflict
from netkin.errors import UserError
from netkin.zoo.build import Classifier
from tests.conftest import Mistake

KEYS = ["a", "b"]


pytestmark = pytest.mark.usefixtures("one_thread")


def vit(name: str = "vit_tiny_patch16_224", seed: int = 0, **changes: Any) -> Classifier:
    """A tiny ViT in double precision, 16 patches of 8 x 8 pixels, with sharp attention."""
    torch.manual_seed(seed)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2}
    net = timm.create_model(name, num_classes=5, **{**sizes, **changes}).double().eval()
    with torch.no_grad():
        for block in net.blocks:  # type: ignore[operator, union-attr]
            block.attn.qkv.weight.normal_(std=0.5)  # type: ignore[union-attr]
        net.head.weight.normal_()  # type: ignore[union-attr]
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    return Classifier(net, "tiny", mean, std).double().requires_grad_(False).eval()


@pytest.fixture(scope="module")
def source() -> Classifier:
    return vit()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    torch.manual_seed(1)
    return torch.rand(2, 3, 32, 32, dtype=torch.float64)


def attention_by_hand(model: Classifier, image: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
    """Logits [K] of one image [3, H, W], and each layer's attention head by head, [N, N]."""
    net: Any = model.net
    tokens = net.patch_embed(((image - model.mean) / model.std)[None])[0]
    x = torch.cat([net.cls_token[0], tokens]) + net.pos_embed[0]
    layers = []
    for block in net.blocks:
        q, k, v = (block.attn.qkv.weight @ block.norm1(x).T).T.add(block.attn.qkv.bias).chunk(3, 1)
        width = block.attn.head_dim
        outputs, heads = [], []
        for h in range(block.attn.num_heads):
            part = slice(h * width, (h + 1) * width)
            scores = q[:, part] @ k[:, part].T / math.sqrt(width)
            weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
            heads.append(weights)
            outputs.append(weights @ v[:, part])
        x = x + block.attn.proj(torch.cat(outputs, dim=1))
        x = x + block.mlp(block.norm2(x))
        layers.append(heads)
    return net.head(net.norm(x)[0]), layers


def loss_by_hand(heads: list[Tensor], token: int) -> Tensor:
    mean = sum(heads) / len(heads)
    assert isinstance(mean, Tensor)
    return sum((row[token].log() for row in mean), torch.zeros(())) / len(mean)


def patch_fool_by_hand(
    model: Classifier, image: Tensor, label: int, start: Tensor, surgery: str, steps: int
) -> Tensor:
    """One image, one patch, vanilla, as the paper and its code have it; Adam written out."""
    _, layers = attention_by_hand(model, image)
    mean = sum(layers[1]) / len(layers[1])
    assert isinstance(mean, Tensor)
    patch = int(mean.mean(dim=0)[1:].argmax())  # over queries, without the class token
    rows, columns = divmod(patch, 4)
    region = (slice(None), slice(8 * rows, 8 * rows + 8), slice(8 * columns, 8 * columns + 8))
    low, high = -model.mean / model.std, (1 - model.mean) / model.std
    delta = ((start - model.mean) / model.std)[region].clone()
    m, v = torch.zeros_like(delta), torch.zeros_like(delta)
    for t in range(1, steps + 1):
        delta.requires_grad_()
        patched = image.clone()
        patched[region] = delta * model.std + model.mean
        logits, layers = attention_by_hand(model, patched)
        loss = -logits.log_softmax(dim=0)[label]
        (ascent,) = torch.autograd.grad(loss, delta, retain_graph=True)
        total = ascent.clone()
        attended = loss_by_hand(layers[1], patch + 1)  # of 4 layers, 1 to 4/2 - 1
        (g,) = torch.autograd.grad(attended, delta)
        dot = (g * ascent).sum()
        if dot < 0:
            square = (ascent**2).sum()
            g = g - dot / (square if surgery == "orthogonal" else square.sqrt()) * ascent
        total += 0.002 * g
        m, v = 0.9 * m + 0.1 * total, 0.999 * v + 0.001 * total**2
        rate = 0.22 * 0.95 ** ((t - 1) // 10)
        step = rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        delta = torch.min(torch.max(delta.detach() + step, low), high)
    result = image.clone()
    result[region] = delta.detach() * model.std + model.mean
    return result


@pytest.mark.parametrize("surgery", ["orthogonal", "published"])
def test_equals_the_attack_by_hand(source: Classifier, pixels: Tensor, surgery: str) -> None:
    """Its choice of a patch, its losses and their gradients, and its optimiser."""
    labels = source(pixels).argmax(dim=1)
    steps = 12  # the rate decays once
    attack = PatchFool(surgery=surgery, steps=steps)
    ours = attack.perturb(source, pixels, labels, KEYS)
    start = attack._content(pixels, KEYS)
    for i in range(2):
        theirs = patch_fool_by_hand(source, pixels[i], int(labels[i]), start[i], surgery, steps)
        torch.testing.assert_close(ours[i], theirs, atol=1e-6, rtol=0)
    assert (ours != pixels).any(dim=1).sum(dim=(1, 2)).tolist() == [64, 64]


@given(st.integers(0, 2**31), st.sampled_from(["orthogonal", "published"]))
def test_surgery(seed: int, surgery: str) -> None:
    torch.manual_seed(seed)
    g, o = torch.randn(2, 6, 3, 2, 2, dtype=torch.float64)
    found = without_conflict(g, o, surgery)
    for ours, a, b in zip(found.flatten(1), g.flatten(1), o.flatten(1), strict=True):
        dot = a @ b
        if dot >= 0:
            assert torch.equal(ours, a)
        elif surgery == "orthogonal":
            assert abs(ours @ b) < 1e-9  # nothing is left along the other
            torch.testing.assert_close(ours @ a, a @ a - dot**2 / (b @ b))
        else:
            torch.testing.assert_close(ours, a - dot / b.norm() * b)
    assert torch.equal(without_conflict(g, torch.zeros_like(g), surgery), g)


@pytest.mark.parametrize(("eps", "choice"), [(None, "attention"), (0.1, "random")])
def test_only_so_many_patches_change(
    source: Classifier, pixels: Tensor, choice: str, eps: float | None
) -> None:
    labels = source(pixels).argmax(dim=1)
    attack = PatchFool(eps, patches=3, choice=choice, steps=4)
    found = attack.perturb(source, pixels, labels, KEYS)
    second = attack.perturb(source, pixels[1:], labels[1:], KEYS[1:])
    torch.testing.assert_close(found[1:], second, atol=1e-6, rtol=0)
    assert not torch.equal(second, attack.perturb(source, pixels[1:], labels[1:], ["c"]))
    blocks = (found != pixels).any(dim=1).unflatten(1, (4, 8)).unflatten(3, (4, 8))
    touched = blocks.any(dim=4).any(dim=2)
    assert touched.sum(dim=(1, 2)).tolist() == [3, 3]
    furthest = (found - pixels).abs().max().item()
    assert furthest <= 0.1 + 1e-9 if eps else furthest > 0.5
    assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize(
    ("depth", "layer", "raised"),
    [(12, 4, (1, 2, 3, 4, 5)), (6, 2, (1, 2)), (4, 1, (1,)), (3, 1, (1,)), (24, 4, range(1, 12))],
)
def test_layers_by_default(depth: int, layer: int, raised: Any) -> None:
    """As published for depth 12; in proportion for shallower ViTs."""
    attack = PatchFool()
    assert attack._layer(depth) == layer
    assert attack._attention_layers(depth) == tuple(raised)


def test_what_does_not_fit_is_refused(pixels: Tensor) -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    cnn = Classifier(timm.create_model("test_resnet", num_classes=5), "cnn", (0, 0, 0), (1, 1, 1))
    hybrid = timm.create_model("vit_tiny_r_s16_p8_224", img_size=32, embed_dim=24, depth=2)
    for model, message in (
        (cnn, "is no timm VisionTransformer"),
        (vit(class_token=False, global_pool="avg"), "has no class token"),
        (hybrid, "has tokens that are no patches of pixels"),
        (nn.Linear(2, 2), "is no timm VisionTransformer"),
    ):
        assert PatchFool().unfit(model) == message
    with pytest.raises(UserError, match=r"Patch-Fool fits plain .* cnn is no timm Vis"):
        PatchFool().perturb(cnn, pixels.float(), labels, KEYS)
    assert PatchFool(layer=4).unfit(vit()) == "has no layer 4, only 0 to 3"
    assert PatchFool(attention_layers=[1, 5]).unfit(vit()) == "has no layer 5, only 0 to 3"
    assert PatchFool(patches=17).unfit(vit()) == "has 16 patches, not 17"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patches": 0}, "^patches must be a whole number of 1 or more"),
        ({"choice": "saliency"}, "^choice must be attention or random"),
        ({"surgery": "none"}, "^surgery must be orthogonal or published"),
        ({"lr": "fast"}, "^lr must be a number of 0 or more"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PatchFool(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("attack=patchfool",),
        ("experiment=attacks", "attacks=[pgd,patchfool]", "sources=[vit_ti,test_resnet]"),
    ],
)
def test_sources_that_do_not_fit_are_named_with_what_would_work(
    mistake: Mistake, overrides: tuple[str, ...]
) -> None:
    line = mistake("model.members=[test_resnet,vit_ti,vit_s]", *overrides)
    assert "patchfool does not fit all sources: test_resnet is no timm VisionTr" in line
    assert "model.members=[vit_ti,vit_s]" in line
    assert "experiment=attacks attacks=[pgd,patchfool] sources=[vit_ti,vit_s]" in line
