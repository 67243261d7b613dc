"""What `netkin.compare` returns: scores, tables, a heatmap and a page."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from markupsafe import escape
from matplotlib.figure import Figure
from numpy.typing import NDArray

from netkin.errors import UserError
from netkin.report.comparison import Comparison
from netkin.report.study import Outputs
from netkin.similarity import Outcomes


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """How related some models are. In a notebook it is shown as its heatmap.

    Attributes:
        outcomes: what the scores were computed from; see `netkin.similarity`.
        comparison: tables, sentences and sections of the page.
        settings: how it was measured, as JSON.
    """

    outcomes: Outcomes
    comparison: Comparison
    settings: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """N names, the order of `scores`."""
        return tuple(self.comparison.relations.names)

    @property
    def scores(self) -> NDArray[np.float64]:
        """[N, N], symmetric, s = ln(100 p) in nats; the diagonal is of white-box success."""
        return self.comparison.relations.scores

    @property
    def pairs(self) -> pl.DataFrame:
        """A row a pair: a, b, n, a_fools_b, b_fools_a, score, low, high (95 % interval)."""
        return self.comparison.relations.pairs

    @property
    def models(self) -> pl.DataFrame:
        """A row a model: clean_accuracy, white_box_success, mean_similarity, nearest and others."""
        return self.comparison.relations.models

    @property
    def families(self) -> pl.DataFrame:
        """Mean scores within and between families, with their 95 % intervals."""
        return self.comparison.relations.family_means

    @property
    def answer(self) -> tuple[str, ...]:
        """The findings, and what to know of them, in words."""
        return tuple(self.comparison.answer)

    def heatmap(self) -> Figure:
        """The clustered matrix with its dendrogram."""
        figure = self.comparison.figure()
        # Notebooks draw figures of pyplot only, which keeps them in a global list.
        setattr(figure, "_repr_png_", partial(_png, figure))  # noqa: B010
        return figure

    def save(self, folder: str | Path) -> Path:
        """Write what the command writes, and return the path of report.html.

        That is similarity, pairs, models and families as CSV and, up to 500 rows, for LaTeX, the
        heatmap as PNG, PDF and SVG, and report.html. Raises UserError where the folder cannot be
        written.
        """
        try:
            outputs = Outputs(Path(folder).expanduser())
        except OSError as error:
            raise UserError(f"folder={folder} cannot be made ({error.strerror})") from None
        c = self.comparison
        c.write(outputs)
        settings = yaml.safe_dump(dict(self.settings), sort_keys=False)
        return outputs.report(c.title, c.question, c.answer, c.sections(outputs.folder), settings)

    def __repr__(self) -> str:
        return "\n".join([f"netkin.Result of {len(self.names)} models", *self.answer])

    def _repr_png_(self) -> bytes:
        return _png(self.comparison.figure())

    def _repr_html_(self) -> str:
        png = base64.b64encode(self._repr_png_()).decode()
        text = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in self.answer)
        return f'<img src="data:image/png;base64,{png}" alt="Similarity of every pair">{text}'


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, bbox_inches="tight")
    return out.getvalue()
