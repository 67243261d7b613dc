"""gluon_xception65, one of the paper's 69 models, which timm has dropped, as published.

Today's xception65 of timm has the same 39,916,312 parameters but is another function: it has no
activation before the second block's shortcut, and a ReLU after each depthwise convolution of the
exit flow. This one computes the function of timm 0.6.7 and has its parameter names, so that the
published checkpoint loads as it is (GluonCV's Xception-65, Chollet 2017 with a deeper middle).
"""

from collections import OrderedDict
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

RELEASES = "https://github.com/rwightman/pytorch-image-models/releases/download"
PUBLISHED = {
    "url": f"{RELEASES}/v0.1-weights/gluon_xception-7015a15c.pth",
    "input_size": (3, 299, 299),
    "crop_pct": 0.903,
    "pool_size": (10, 10),
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "num_classes": 1000,
    "first_conv": "conv1",
    "classifier": "fc",
}
default_cfgs = generate_default_cfgs({"gluon_xception65.gluon_in1k": PUBLISHED})


def _separable(ins: int, outs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv_dw=nn.Conv2d(ins, ins, 3, stride, padding=1, groups=ins, bias=False),
            bn=nn.BatchNorm2d(ins),
            conv_pw=nn.Conv2d(ins, outs, 1, bias=False),
        )
    )


class Block(nn.Module):
    """Three separable convolutions and a shortcut; `stride` is the last one's."""

    def __init__(self, ins: int, outs: tuple[int, int, int], stride: int = 1, act: bool = True):
        super().__init__()
        self.skip = None
        if stride != 1 or ins != outs[-1]:
            self.skip = nn.Sequential(
                OrderedDict(
                    conv1=nn.Conv2d(ins, outs[-1], 1, stride, bias=False),
                    bn1=nn.BatchNorm2d(outs[-1]),
                )
            )
        rep: OrderedDict[str, nn.Module] = OrderedDict()
        for i, width in enumerate(outs, start=1):
            if i > 1 or act:
                rep[f"act{i}"] = nn.ReLU(inplace=i > 1)  # the first one's input goes to skip too
            rep[f"conv{i}"] = _separable(ins, width, stride if i == 3 else 1)
            rep[f"bn{i}"] = nn.BatchNorm2d(width)
            ins = width
        self.rep = nn.Sequential(rep)

    def forward(self, x: Tensor) -> Tensor:
        """[B, ins, H, W] to [B, outs[-1], H / stride, W / stride]."""
        return self.rep(x) + (x if self.skip is None else self.skip(x))


class GluonXception65(nn.Sequential):
    """Modified aligned Xception-65 as GluonCV trained it: images [B, C, H, W] to logits [B, K]."""

    def __init__(self, num_classes: int = 1000, in_chans: int = 3):
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(in_chans, 32, 3, stride=2, padding=1, bias=False),
            bn1=nn.BatchNorm2d(32),
            act1=nn.ReLU(inplace=True),
            conv2=nn.Conv2d(32, 64, 3, padding=1, bias=False),
            bn2=nn.BatchNorm2d(64),
            act2=nn.ReLU(inplace=True),
            block1=Block(64, (128, 128, 128), stride=2, act=False),
            block1_act=nn.ReLU(inplace=True),
            block2=Block(128, (256, 256, 256), stride=2, act=False),
            block3=Block(256, (728, 728, 728), stride=2),
            mid=nn.Sequential(
                OrderedDict((f"block{i}", Block(728, (728, 728, 728))) for i in range(4, 20))
            ),
            block20=Block(728, (728, 1024, 1024), stride=2),
            block20_act=nn.ReLU(inplace=True),
        )
        for i, (ins, outs) in enumerate([(1024, 1536), (1536, 1536), (1536, 2048)], start=3):
            layers[f"conv{i}"] = _separable(ins, outs)
            layers[f"bn{i}"] = nn.BatchNorm2d(outs)
            layers[f"act{i}"] = nn.ReLU(inplace=True)
        layers["global_pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(2048, num_classes)
        super().__init__(layers)
        self.num_classes = num_classes


def gluon_xception65(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """timm's entry point; `kwargs` are those that `timm.create_model` passes."""
    return build_model_with_cfg(GluonXception65, "gluon_xception65", pretrained, **kwargs)


# timm warns when a name is registered twice, as a reload of this module would.
if not timm.is_model("gluon_xception65"):
    register_model(gluon_xception65)
