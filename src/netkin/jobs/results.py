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
    """

    seconds: float = 0.0
    images: int = 0
    remaining: Any = None

    @property
    def note(self) -> str:
        """What the display adds to the item's name."""
        return ""


@dataclass(frozen=True, kw_only=True)
class Crafted(Result):
    """A source's adversarial images.

    Attributes:
        shards: number of shards crafted.
        storing: seconds for which crafting waited for the store.
    """

    shards: int = 0
    storing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Trained(Result):
    """A member's training.

    Attributes:
        curves: a row an epoch; see `netkin.training.fit`.
        test_accuracy: of the weights that were kept, in [0, 1]; None where it was not evaluated.
    """

    curves: Sequence[Mapping[str, float]] = ()
    test_accuracy: float | None = None

    @property
    def note(self) -> str:
        """The test accuracy, in percent."""
        return f"; test accuracy {self.test_accuracy:.1%}" if self.test_accuracy else ""


def totals(name: str, parts: Sequence[Result]) -> dict[str, Any]:
    """A member's row of the table of stages, over all parts of its work in one.

    Columns: model, seconds, images, images_per_second; of crafting also shards and share_in_store,
    the share of the time that went into storing.
    """
    seconds, images = sum(part.seconds for part in parts), sum(part.images for part in parts)
    crafted = [part for part in parts if isinstance(part, Crafted)]
    shards = sum(part.shards for part in crafted)
    return {
        "model": name,
        "seconds": seconds,
        "images": images,
        "images_per_second": images / seconds if images and seconds else None,
        "shards": shards or None,
        "share_in_store": sum(part.storing for part in crafted) / seconds if shards else None,
    }
