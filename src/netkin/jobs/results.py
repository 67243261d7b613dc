"""What workers return to the main process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Result:
    """One item's work.

    Attributes:
        seconds: wall-clock time that it took.
        images: number of images that a model was run on, or that were decoded.
        remaining: the item reduced to what another process has taken, which is tried again later;
            None where the item is finished.
        shards, storing: of crafting, the number of shards, and the seconds spent on storing them.
        curves, test_accuracy: of training, a row an epoch (see `netkin.training.fit`), and the
            accuracy in [0, 1] of the weights that were kept, None where it was not evaluated.
    """

    seconds: float = 0.0
    images: int = 0
    remaining: Any = None
    shards: int = 0
    storing: float = 0.0
    curves: Sequence[Mapping[str, float]] = ()
    test_accuracy: float | None = None

    @property
    def note(self) -> str:
        """What the display adds to the item's name."""
        return f"; test accuracy {self.test_accuracy:.1%}" if self.test_accuracy else ""


def totals(name: str, parts: Sequence[Result]) -> dict[str, Any]:
    """A member's row of the table of stages, over all parts of its work in one.

    Columns: model, seconds, images, images_per_second; of crafting also shards and share_in_store,
    the share of the time that went into storing.
    """
    seconds, images = sum(part.seconds for part in parts), sum(part.images for part in parts)
    shards = sum(part.shards for part in parts)
    return {
        "model": name,
        "seconds": seconds,
        "images": images,
        "images_per_second": images / seconds if images and seconds else None,
        "shards": shards or None,
        "share_in_store": sum(part.storing for part in parts) / seconds if shards else None,
    }
