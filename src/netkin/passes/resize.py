"""The control between geometries: how often a target errs on another model's view of clean images.

An adversarial image reaches a target through the source's crop and a resize. Both can make the
target err without any attack; how often they do is reported beside the scores.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from netkin.data.views import View
from netkin.passes.setting import Setting
from netkin.passes.stored import correct
from netkin.store.files import digest, read_tensors
from netkin.zoo.member import Member


@dataclass(frozen=True)
class Unresized:
    """A member and the views of others through which its predictions are not stored."""

    member: Member
    views: tuple[View, ...]

    @property
    def name(self) -> str:
        """What the display calls it."""
        return self.member.name


def resized_path(setting: Setting, member: Member, view: View) -> Path:
    """The file of a member's predictions on the images through another view."""
    key = digest({"view": asdict(view), "interpolation": setting.interpolation})[:12]
    return setting.clean_entry(member).path / f"seen-as-{key}.safetensors"


def missing_views(setting: Setting, members: Sequence[Member]) -> list[Unresized]:
    """Members with the others' views through which their predictions are not stored."""
    views = dict.fromkeys(setting.view(member) for member in members)
    items = []
    for member in members:
        own = setting.view(member)
        missing = [v for v in views if v != own and not resized_path(setting, member, v).is_file()]
        items.append(Unresized(member, tuple(missing)))
    return [item for item in items if item.views]


def resize_errors(setting: Setting, members: Sequence[Member]) -> pl.DataFrame:
    """One row an ordered pair of different views, sorted by error, largest first.

    Columns: source_view, target_view (in words), targets (members with that view), images (mean
    number that a target classifies correctly in its own view) and resize_error: the share of those
    that it gets wrong in the source's view, averaged over the targets.
    """
    by_view: dict[View, list[Member]] = {}
    for member in members:
        by_view.setdefault(setting.view(member), []).append(member)
    labels = setting.labels
    rows = []
    for source in by_view:
        for target, targets in by_view.items():
            if source == target:
                continue
            shares, images = [], []
            for member in targets:
                right = correct(setting, member)
                if right.any():
                    predictions = read_tensors(resized_path(setting, member, source))["predictions"]
                    shares.append((predictions != labels)[right].float().mean().item())
                    images.append(int(right.sum()))
            rows.append(
                {
                    "source_view": words(source),
                    "target_view": words(target),
                    "targets": len(targets),
                    "images": float(np.mean(images)) if images else 0.0,
                    "resize_error": float(np.mean(shares)) if shares else None,
                }
            )
    schema = {
        "source_view": pl.String,
        "target_view": pl.String,
        "targets": pl.Int64,
        "images": pl.Float64,
        "resize_error": pl.Float64,
    }
    return pl.DataFrame(rows, schema=schema).sort("resize_error", descending=True, nulls_last=True)


def words(view: View) -> str:
    """A view in words: "224 px, crop 0.9, bicubic"."""
    crop = "" if view.crop_mode == "center" else f" {view.crop_mode}"
    return f"{view.input_size} px, crop {view.crop_pct:.4g}{crop}, {view.interpolation}"
