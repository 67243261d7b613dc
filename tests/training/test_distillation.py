"""Distillation: the loss, the inputs of teacher and student, and the target of each head."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from netkin.data.digits import Digits
from netkin.errors import UserError
from netkin.training.distillation import Distillation, Teacher, distillation_loss, with_token
from netkin.training.fit import Job, fit, one_head
from netkin.training.recipe import Recipe
from netkin.training.weights import Hardware
from netkin.zoo.build import Classifier, Task, build
from netkin.zoo.member import Member

TASK = Task("digits", num_classes=10, input_size=32, fit=({"img_size": 32, "patch_size": 8}, {}))
TINY = Member("vit", "vit_tiny_patch16_224", {"embed_dim": 16, "depth": 1, "num_heads": 2})


def test_hard_loss_by_hand() -> None:
    """Two classes, one image: softmax probabilities 1/4, 3/4 and 1/5, 4/5."""
    class_logits = torch.tensor([[0.0, math.log(3.0)]])
    distilled = torch.tensor([[0.0, math.log(4.0)]])
    teacher = torch.tensor([[5.0, 1.0]])  # predicts 0; the label is 1
    parts = distillation_loss(
        Distillation("hard", alpha=0.5), class_logits, distilled, teacher, torch.tensor([1])
    )
    assert parts.label.item() == pytest.approx(0.5 * -math.log(3 / 4))
    assert parts.teacher.item() == pytest.approx(0.5 * -math.log(1 / 5))
    assert (parts.label + parts.teacher).item() == pytest.approx(
        0.5 * math.log(4 / 3) + 0.5 * math.log(5)
    )


def test_smoothing_and_mixing_are_of_the_true_label_alone() -> None:
    logits, teacher = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[1.0, 5.0]])
    hard = Distillation("hard", alpha=0.5)
    smoothed = distillation_loss(hard, logits, logits, teacher, torch.tensor([1]), 0.2)
    mixed = distillation_loss(hard, logits, logits, teacher, torch.tensor([[0.1, 0.9]]))
    expected = -0.5 * (0.1 * math.log(1 / 4) + 0.9 * math.log(3 / 4))
    assert smoothed.label.item() == mixed.label.item() == pytest.approx(expected)
    assert smoothed.teacher.item() == pytest.approx(-0.5 * math.log(3 / 4))


def test_soft_loss_by_hand() -> None:
    """At tau = 2 logits halve: teacher (1/4, 3/4), student (1/5, 4/5)."""
    distilled = torch.tensor([[0.0, 2 * math.log(4.0)]])
    teacher = torch.tensor([[0.0, 2 * math.log(3.0)]])
    class_logits = torch.zeros(1, 2)
    soft = Distillation("soft", alpha=0.1, tau=2.0)
    parts = distillation_loss(soft, class_logits, distilled, teacher, torch.tensor([0]))
    kl = 0.25 * math.log((1 / 4) / (1 / 5)) + 0.75 * math.log((3 / 4) / (4 / 5))
    assert parts.teacher.item() == pytest.approx(0.1 * 4 * kl, rel=1e-5)
    assert parts.label.item() == pytest.approx(0.9 * math.log(2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "firm"}, "must be hard or soft"),
        ({"alpha": 0.0}, r"must be in \(0, 1\]"),
        ({"alpha": 1.5}, r"must be in \(0, 1\]"),
        ({"tau": 0.0}, "must be above 0"),
    ],
)
def test_values_out_of_range(wrong: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Distillation(**wrong)


class Mean(nn.Module):
    """Logits that are a known function of the mean of its (normalised) input and of its size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls: list[tuple[int, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((x.shape[-1], self.training, torch.is_grad_enabled()))
        mean = x.mean(dim=(1, 2, 3)) * self.weight
        return torch.stack([mean, -mean], dim=1)


def test_the_teacher_has_pixels_of_its_size_under_its_own_normalisation() -> None:
    net = Mean()
    mean, std = (0.2, 0.2, 0.2), (0.1, 0.1, 0.1)
    teacher = Teacher(Classifier(net, "mean", mean, std).train(), 48, Distillation())
    grey = torch.tensor([0.25, 0.7]).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    logits = teacher(grey)
    np.testing.assert_allclose(logits[:, 0], [(0.25 - 0.2) / 0.1, (0.7 - 0.2) / 0.1], rtol=1e-4)
    assert net.calls == [(48, False, False)]
    assert not any(parameter.requires_grad for parameter in net.parameters())


def job(folder: Path, recipe: Recipe, teacher: Teacher | None) -> Job:
    test = TensorDataset(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10))
    images = Digits("train", test_size=1733)
    return Job({"name": "vit"}, recipe, images, test, folder, Hardware("cpu"), teacher)


def test_student_and_teacher_have_the_same_mixed_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mixed label is the target of the class head, the teacher's label of the other head."""
    calls: dict[str, list] = {"student": [], "teacher": [], "loss": []}
    teacher = Teacher(build(TINY, TASK, seed=1), 32, Distillation())
    teacher.classifier.register_forward_hook(
        lambda module, pixels, logits: calls["teacher"].append((pixels[0].clone(), logits.clone()))
    )
    student = build(with_token(TINY), TASK)
    student.register_forward_hook(
        lambda module, pixels, logits: (
            calls["student"].append((pixels[0].clone(), logits)) if module.training else None
        )
    )

    def loss(*arguments: Any) -> Any:
        calls["loss"].append([a.detach().clone() if torch.is_tensor(a) else a for a in arguments])
        return distillation_loss(*arguments)

    monkeypatch.setattr("netkin.training.fit.distillation_loss", loss)
    recipe = Recipe(epochs=1, batch_size=32, lr=1e-3, mixup=0.8, label_smoothing=0.1)
    fit(student, job(tmp_path, recipe, teacher))
    assert len(calls["student"]) == len(calls["teacher"]) == len(calls["loss"]) == 2
    for (student_input, heads), (teacher_input, output), arguments in zip(
        *calls.values(), strict=True
    ):
        assert torch.equal(student_input, teacher_input)
        settings, class_logits, distilled, teacher_logits, target, smoothing = arguments
        assert (
            settings == Distillation() and smoothing == 0.0
        )  # the mixed label is smoothed already
        assert torch.equal(class_logits, heads[0]) and torch.equal(distilled, heads[1])
        assert torch.equal(teacher_logits, output)
        assert target.shape == (32, 10)
        torch.testing.assert_close(target.sum(dim=1), torch.ones(32))
        assert target.min() >= 0.1 / 10 - 1e-6
        assert ((target > 0.02).sum(dim=1) > 1).any()  # two classes in one image


def test_evaluation_averages_both_heads() -> None:
    student = build(with_token(TINY), TASK).eval()
    student.net.set_distilled_training(True)  # type: ignore[operator]
    pixels = torch.rand(4, 3, 32, 32)
    both = (one_head(student, pixels, 0) + one_head(student, pixels, 1)) / 2
    torch.testing.assert_close(student(pixels), both)
    assert isinstance(student.train()(pixels), tuple)


def test_a_student_learns_from_its_teacher(tmp_path: Path) -> None:
    """With alpha = 1 the labels have no part in the loss; the student learns the predictions."""
    recipe = Recipe(epochs=6, batch_size=16, lr=3e-3, validate_every=6)
    teacher = Teacher(build(TINY, TASK, seed=5), 32, Distillation(alpha=1.0))
    end = fit(build(with_token(TINY), TASK), job(tmp_path, recipe, teacher))
    first, last = end.curves[0], end.curves[-1]
    assert last["teacher_loss"] < first["teacher_loss"]
    assert last["teacher_agreement"] > 0.5
    assert last["label_loss"] == 0.0
    assert {"test_accuracy_class_head", "test_accuracy_distilled_head"} <= last.keys()


def test_a_plain_vit_gets_a_token() -> None:
    student = with_token(TINY)
    assert student.name == "vit" and student.kwargs == TINY.kwargs
    net = build(student, TASK).net
    plain = build(TINY, TASK).net
    count = {id(n): sum(p.numel() for p in n.parameters()) for n in (net, plain)}
    # One token, its position, and a head of 16 x 10 + 10.
    assert count[id(net)] - count[id(plain)] == 16 + 16 + 170
    assert with_token(student) == student
    small = with_token(Member("s", "deit_small_patch16_224"))
    published = timm.create_model("deit_small_distilled_patch16_224")
    with torch.device("meta"):
        ours = timm.create_model(small.timm, **small.kwargs)
    shapes = {name: p.shape for name, p in ours.named_parameters()}
    assert shapes == {name: p.shape for name, p in published.named_parameters()}


@pytest.mark.parametrize(
    "name", ["test_resnet", "vit_base_patch16_siglip_224", "deit3_small_patch16_224"]
)
def test_other_architectures_get_no_token(name: str) -> None:
    with pytest.raises(UserError, match="is not a plain ViT with a class token"):
        with_token(Member("x", name))
