"""The studies of many models and of landmarks over draws, small."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from netkin.analysis.matrix import Matrix
from tests import helpers


def test_scale_benchmark(tmp_path: Path) -> None:
    """Stages with their times, the page of `pairwise`, and files of outcomes."""
    sizes = {"models": "[14]", "images": 60, "draws": 20, "landmarks": 5, "stored": "[3]"}
    arguments = [f"benchmark.{name}={value}" for name, value in sizes.items()]
    out = helpers.run("scale_benchmark", tmp_path / "scale_benchmark", arguments)
    table = pl.read_csv(out / "scale.csv")
    assert table.columns == ["stage", "14_seconds", "14_cpu_seconds", "14_peak_gib"]
    assert {"scores", "clusters", "5 landmarks", "page"} <= set(table["stage"])
    assert table["14_peak_gib"].is_sorted() and (table["14_seconds"] >= 0).all()
    page = (out / "14" / "report.html").read_text()
    assert "family00" in page and (out / "14" / "similarity.svg").is_file()
    files = pl.read_csv(out / "storage_3.csv")
    assert files["files"].to_list() == [3] and files["bytes"].item() > 1000


def test_landmarks_benchmark(tmp_path: Path) -> None:
    """A row a draw, their means, and the curve; models that are not known have no components."""
    places = np.linspace(0, 1, 9)
    scores = 4 - 3 * np.abs(places[:, None] - places)
    file = tmp_path / "line.csv"
    Matrix(tuple(f"model {i}" for i in range(9)), scores).table().write_csv(file)
    arguments = [f"similarity={file}", "landmarks=[5,6]", "draws=2", "logger=none"]
    out = helpers.run("landmarks_benchmark", tmp_path / "landmarks_benchmark", arguments)
    each, table = (pl.read_csv(out / f"landmarks_{name}.csv") for name in ("draws", "table"))
    assert each.height == 4 and table["draws"].to_list() == [2, 2]
    for row in table.to_dicts():
        r2 = each.filter(landmarks=row["landmarks"])["r2"].to_list()
        assert (row["r2"], row["r2_low"]) == pytest.approx((np.mean(r2), min(r2)))
    helpers.has_figures(out, "landmarks_curve")
    assert "Without components: " in (out / "report.html").read_text()
