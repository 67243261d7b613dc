"""The studies of clusters, components and importance, by the command, on four members and on the
published matrix."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.helpers import MEMBERS, four_store, has_figures, on_four, page_text, run

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
CLUSTER_FIGURES = ("cluster_matrix", "spectral_features", "cluster_map", "co_assignment")
published = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the published data are not beside the project"
)


def test_clusters(folder: Path) -> None:
    """Four members, two and two of one architecture: their clusters, keywords and stability."""
    done = on_four(
        "clusters", folder, "clusters.draws=5", "clusters.seeds=2", "clusters.restarts=50"
    )
    has_figures(done, *CLUSTER_FIGURES)
    table = pl.read_csv(done / "clusters.csv")
    of = dict(table.iter_rows())
    assert sorted(of) == sorted(MEMBERS) and set(of.values()) == {1, 2}
    assert of["test_byobnet"] == of["twin"] != of["vit_ti"] == of["other"]
    words = pl.read_csv(done / "keywords.csv")
    assert words["rank"].to_list() == [1, 2, 3, 4, 5] * 2
    vit = words.filter(cluster=of["vit_ti"])
    assert {"Base architecture", "Stem layer"} <= set(vit["component"])
    assert (vit["share"] == 1).all() and (vit["share_of_all"] >= 0.5).all()
    stability = pl.read_csv(done / "stability.csv")
    assert (stability["seeds"] == 1).all() and (stability["images"] > 0.5).all()
    matrix = pl.read_csv(done / "cluster_matrix.csv")
    assert [of[name] for name in matrix[""]] == [1, 1, 2, 2]
    features = pl.read_csv(done / "features.csv")[:, 2:].to_numpy()
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1)
    assert "clusters/rand_over_images" in (done / "metrics.csv").read_text()


@pytest.mark.slow
def test_a_novel_model_has_the_clusters_of_experiment_clusters(folder: Path) -> None:
    """A fifth model is placed among the clusters of experiment=clusters, under their numbers."""
    weights = four_store(folder) / "weights" / "digits" / "vit_ti.safetensors"
    kwargs = "{embed_dim: 64, depth: 4, num_heads: 4}"
    candidate = (
        f"model.candidate={{name: fifth, timm: vit_tiny_patch16_224, kwargs: {kwargs}, "
        f"checkpoint: {weights}}}"
    )
    for k in ("3", "auto"):
        done = on_four("clusters", folder, f"k={k}", "clusters.draws=1", "clusters.seeds=1")
        expected = dict(pl.read_csv(done / "clusters.csv").iter_rows())
        done = on_four("novel", folder, candidate, f"novel.clusters={k}")
        has_figures(done, "novel")
        table = pl.read_csv(done / "novel.csv")
        assert dict(table.select("model", "cluster").iter_rows()) == expected
        means = table.group_by("cluster").agg(pl.col("score").mean())
        best = means.sort(["score", "cluster"], descending=[True, False])
        cluster = best["cluster"][0]
        page = page_text(done / "report.html")
        assert re.search(rf"(belongs|is closest) to cluster {cluster} of", page)
        assert {table["model"][0], table["model"][1]} == {"vit_ti", "other"}


def test_components(folder: Path) -> None:
    """Two members as they are built for the digits, and compared with a table."""
    theirs = folder / "theirs.csv"
    theirs.write_text("model,Base architecture,Stem layer\nvit_ti,Transformer,16s16\n")
    done = run(
        "components",
        folder / "components",
        ["dataset=digits", "model.members=[vit_ti]", f"components={theirs}", "logger=csv"],
    )
    (row,) = pl.read_csv(done / "components.csv").to_dicts()
    assert row["Model name"] == "vit_ti" and len(row) == 14
    assert (row["Base architecture"], row["Stem layer"]) == ("Transformer", "8s8")
    assert pl.read_csv(done / "agreement.csv").rows() == [
        ("Base architecture", 1, 1, 1.0),
        ("Stem layer", 1, 0, 0.0),
    ]
    assert pl.read_csv(done / "disagreements.csv").rows() == [
        ("vit_ti", "Stem layer", "8s8", "16s16")
    ]
    assert "1 of 2 cells (50.0%) agree" in page_text(done / "report.html")


def test_importance(folder: Path) -> None:
    """Four members are enough to fit, and too few to hold any out, as the answer states."""
    done = on_four("importance", folder, "importance.stages=20")
    has_figures(done, "importance")
    table = pl.read_csv(done / "importance.csv")
    values = table["mantel_r"].drop_nulls().abs()
    assert table.height == 13 and values.is_sorted(descending=True)
    constant = table.filter(component="2D SA")
    assert constant["importance"].item() == constant["pairs_that_differ"].item() == 0
    assert constant["mantel_p"].item() is constant["holm_p"].item() is None
    assert (table.drop_nulls("holm_p")["holm_p"] >= table.drop_nulls("holm_p")["mantel_p"]).all()
    page = page_text(done / "report.html")
    assert "Not certain: 4 models are too few to tell" in page
    assert (
        "too few to hold any out" in page
        and "is not identified: each is the same for all pairs" in page
    )


def test_relatives(folder: Path) -> None:
    """A member's relatives among four: its double, with the same components, comes first."""
    done = on_four("relatives", folder, "model=test_byobnet")
    has_figures(done, "relatives")
    table = pl.read_csv(done / "relatives.csv")
    first = table.row(0, named=True)
    assert first["model"] == "twin" and first["same_cluster"]
    assert first["shared_components"] == 13 and not first["differs_in"]
    assert table["similarity"].is_sorted(descending=True)
    assert (table[1:]["shared_components"] < 13).all() and not table[1:]["same_cluster"].any()
    page = page_text(done / "report.html")
    assert "test_byobnet is most like twin" in page and "Not certain" in page  # of four models
    assert "With test_byobnet in cluster" in page and "the same components" in page


@pytest.mark.slow
@published
def test_the_papers_order_of_components(tmp_path: Path) -> None:
    """Fig. 1, with fewer stages: base architecture, then the stem; grouped convolution near the
    end. By themselves, without main effects, the stem comes first and all are certain. And what R^2
    is worth on models never seen."""
    done = run(
        "importance",
        tmp_path / "importance",
        [
            f"similarity={REFERENCE / 'sat69_scores.csv'}",
            f"components={REFERENCE / 'components69.csv'}",
            *("importance.stages=200", "importance.learning_rate=0.05", "importance.splits=4"),
            "logger=none",
        ],
    )
    has_figures(done, "importance")
    table = pl.read_csv(done / "importance.csv")
    ranked = table.sort("importance", descending=True)["component"].to_list()
    assert ranked[:2] == ["Base architecture", "Stem layer"]
    assert {"DW conv", "Group conv"} <= set(ranked[-4:])
    assert table["component"].to_list()[:3] == ["Stem layer", "Activation", "Base architecture"]
    assert table.filter(pl.col("holm_p") < 0.05).height == 13
    fitted, held = pl.read_csv(done / "r2.csv").to_dicts()
    assert fitted["pairs"] == 2346 and fitted["r2"] > 0.7 > held["r2"] > held["low"]


@pytest.mark.slow
@published
def test_components_are_read_for_a_matrix_by_its_names(tmp_path: Path) -> None:
    """A matrix of timm names needs no table; one of other names has no keywords, or an error
    names what is missing."""
    whole = pl.read_csv(REFERENCE / "sat69_scores.csv")
    names = ["resnet50", "resnet101", "deit_small_patch16_224", "vit_small_patch16_224"]
    part = whole.filter(pl.col("").is_in(names)).select("", *names)
    part = part.sort(pl.col("").replace_strict({name: i for i, name in enumerate(names)}))
    part.write_csv(tmp_path / "part.csv")
    done = run(
        "clusters",
        tmp_path / "known",
        [f"similarity={tmp_path / 'part.csv'}", "clusters.seeds=1", "logger=none", "k=auto"],
    )
    assert (
        pl.read_csv(done / "components.csv")["Stem layer"].to_list()
        == ["7s2", "7s2"] + ["16s16"] * 2
    )
    assert "the largest gap between eigenvalues" in page_text(done / "report.html")
    other = part.rename({"resnet50": "mine"}).with_columns(pl.col("").replace("resnet50", "mine"))
    other.write_csv(tmp_path / "other.csv")
    done = run(
        "clusters",
        tmp_path / "unknown",
        [
            f"similarity={tmp_path / 'other.csv'}",
            *("clusters.seeds=1", "clusters.images=500", "clusters.draws=3", "logger=none"),
        ],
    )
    assert not (done / "keywords.csv").exists()
    page = page_text(done / "report.html")
    assert re.search("No keywords: .*mine", page)
    assert "Over 3 simulated draws of images" in page
    assert pl.read_csv(done / "resolution.csv")["k"].to_list() == [2]
