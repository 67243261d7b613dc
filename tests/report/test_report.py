"""The hierarchy, the heatmap and the HTML page, on made-up scores."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from netkin.analysis.clusters import hierarchy
from netkin.errors import UserError
from netkin.report.examples import Example, difference, examples_section
from netkin.report.figures import cell_colours, colour_range
from netkin.report.matrix import Relations, matrix_sections
from netkin.report.study import TEX_ROWS, Outputs, Section, render
from netkin.report.style import NO_SCORE

VOID = {"meta", "img", "br", "link", "input", "hr"}


def random_scores(n: int, seed: int = 0) -> np.ndarray:
    s = np.random.default_rng(seed).uniform(1.5, 4.0, (n, n))
    s = (s + s.T) / 2
    np.fill_diagonal(s, np.log(100.0))
    return s


def make_relations(n: int = 3) -> Relations:
    """n models; the last one is a family of its own."""
    names = [f"model_{i}" for i in range(n)]
    families = ["CNN"] * (n - 1) + ["ViT"]
    scores = random_scores(n)
    pairs = [
        {
            "a": names[i],
            "b": names[j],
            "n": 100 + i + j,
            "a_fools_b": 0.125 + i / 100,
            "b_fools_a": 0.375 + j / 100,
            "score": float(scores[i, j]),
            "low": float(scores[i, j]) - 0.25,
            "high": float(scores[i, j]) + 0.25,
        }
        for i in range(n)
        for j in range(i + 1, n)
    ]
    models = pl.DataFrame(
        {
            "model": names,
            "family": families,
            "params": [25_600_000 + i for i in range(n)],
            "input_size": [224] * n,
            "clean_accuracy": [0.9] * n,
            "white_box_success": [0.8125] + [1.0] * (n - 1),
            "white_box_score": np.diag(scores),
            "mean_similarity": [2.5] * n,
            "nearest": names[1:] + names[:1],
        }
    )
    means = [("CNN", "ViT", n - 1, 2.25)] + ([("CNN", "CNN", 1, 3.125)] if n > 2 else [])
    return Relations(
        scores=scores,
        names=names,
        families=families,
        pairs=pl.DataFrame(pairs),
        models=models,
        family_means=pl.DataFrame(
            means, schema=["family_a", "family_b", "pairs", "mean"], orient="row"
        ),
    )


def page(relations: Relations, *others: Section, text: str = "", files: Sequence[str] = ()) -> str:
    """The page of a matrix; `text` stands wherever a page takes plain text of its own."""
    return render(
        text or "How related?",
        text or "Measured so.",
        [text] if text else ["First finding.", "Second finding."],
        [*matrix_sections(relations), *others],
        f"seed: {text or 0}\n",
        [text] if text else files,
    )


def example(text: str = "two", eps: float | None = 8 / 255) -> Section:
    clean = np.full((8, 8, 3), 100, np.uint8)
    return examples_section(
        [Example("m", "digits/7", "seven", text, clean, clean + np.uint8(8))], eps
    )


def data(html: str) -> dict[str, Any]:
    """What the page carries for its script."""
    return json.loads(html.split('<script type="application/json">')[1].split("</script>")[0])


class Parsed(HTMLParser):
    """Start tags, style text and visible text of a page, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.style, self.text, self.scripts = "", [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "style":
            self.style += data
        elif inside == "script":
            self.scripts.append(data)
        elif data.strip():
            self.text.append(data.strip())


@pytest.mark.parametrize("n", [2, 3, 9])
def test_order_is_a_permutation_in_which_every_cluster_is_contiguous(n: int) -> None:
    tree = hierarchy(random_scores(n))
    assert tree.linkage.shape == (n - 1, 4)
    assert sorted(tree.order) == list(range(n))
    place = {leaf: i for i, leaf in enumerate(tree.order)}
    clusters = [[i] for i in range(n)]
    for a, b, _, size in tree.linkage:
        joined = clusters[int(a)] + clusters[int(b)]
        places = [place[leaf] for leaf in joined]
        assert len(joined) == size == max(places) - min(places) + 1
        clusters.append(joined)


def test_height_is_the_mean_distance_and_the_diagonal_is_not_read() -> None:
    s = np.array([[9.0, 3.0, 1.0], [3.0, 0.1, 2.0], [1.0, 2.0, np.nan]])
    tree = hierarchy(s)
    assert tree.top == 3.0
    np.testing.assert_allclose(tree.linkage[:, 2], [0.0, 3.0 - 1.5])


def test_two_blocks_stay_apart_however_models_are_listed() -> None:
    block = np.random.default_rng(1).permutation([0] * 5 + [1] * 6)
    s = np.where(block[:, None] == block, 3.5, 1.5) + random_scores(11) / 100
    ordered = block[hierarchy(s).order]
    assert np.count_nonzero(np.diff(ordered)) == 1


def test_neighbours_are_as_similar_as_the_tree_allows() -> None:
    x = np.array([2.0, 0.0, 3.0, 1.0])  # models on a line, alike where near
    order = hierarchy(4 - np.abs(x[:, None] - x)).order
    assert x[order].tolist() in ([0, 1, 2, 3], [3, 2, 1, 0])


def test_hierarchy_survives_a_pair_without_a_score() -> None:
    s = random_scores(4)
    s[0, 1] = s[1, 0] = np.nan
    assert np.isfinite(hierarchy(s).linkage).all()
    assert np.isfinite(hierarchy(np.full((2, 2), np.nan)).linkage).all()


def test_hierarchy_refuses_one_model_and_an_asymmetric_matrix() -> None:
    with pytest.raises(UserError, match="at least 2 models, got 1"):
        hierarchy(np.ones((1, 1)))
    with pytest.raises(ValueError, match="symmetric"):
        hierarchy(np.array([[1.0, 2.0], [3.0, 1.0]]))


def test_colours_span_the_scores_of_different_models() -> None:
    s = random_scores(8)
    pairs = s[~np.eye(8, dtype=bool)]
    assert colour_range(s) == (pairs.min(), pairs.max())
    many = random_scores(40)
    many[1, 0] = many[0, 1] = 9.0  # one pair must not take the colours of the others
    low, high = colour_range(many)
    assert 1.5 < low < high < 4
    assert colour_range(many - 3, signed=True)[0] == -colour_range(many - 3, signed=True)[1]
    s[0, 1] = s[1, 0] = np.log(0.01)  # never fooled: must not take the range of the others
    low, high = colour_range(s)
    assert low >= 1.5 and high == pairs.max()
    low, high = colour_range(random_scores(2))
    assert low < high


def test_ink_is_dark_on_light_and_light_on_dark() -> None:
    assert cell_colours(np.array([1.0, 2.0, 9.0]), (1.0, 2.0))[1] == ["white", "black", "black"]


@pytest.mark.slow
def test_page_has_both_directions_interval_and_n_of_each_pair() -> None:
    relations = make_relations()
    html = page(relations)
    given, carried = relations.pairs.row(0, named=True), data(html)
    for column in ("n", "score", "low", "high", "a_fools_b", "b_fools_a"):
        assert carried["pairs"][column][0] == pytest.approx(given[column], abs=1e-4)
    assert carried["models"]["white_box_success"][0] == 0.8125
    text = Parsed(html).text
    for words in ("How related?", "Measured so.", "First finding.", "Second finding.", "25.6M"):
        assert words in text
    assert "Weak attack." in text
    assert any(re.search(r"below 95% for model_0\.", t) for t in text)


def test_page_loads_nothing_from_a_network() -> None:
    parsed = Parsed(page(make_relations(), example(), files=["scores.csv"]))
    loads = [v for _, attrs in parsed.tags for k, v in attrs.items() if k in ("src", "href") and v]
    assert sum(v.startswith("data:image/webp;base64,") for v in loads) == 3
    assert {v for v in loads if not v.startswith("data:")} == {"./scores.csv", "./pairs.csv"}
    assert not re.search(r"url\(|@import", parsed.style)
    assert any("default-src 'none'" in (a.get("content") or "") for _, a in parsed.tags)


def test_page_escapes_what_it_is_given() -> None:
    relations, evil = make_relations(), "<script>alert(1)</script>"
    renamed = replace(
        relations,
        names=[evil, *relations.names[1:]],
        families=[evil, *relations.families[1:]],
        pairs=relations.pairs.with_columns(
            pl.col("a", "b").str.replace("model_0", evil, literal=True)
        ),
        models=relations.models.with_columns(
            pl.col("model", "nearest").str.replace("model_0", evil, literal=True)
        ),
    )
    own = Section(evil, [evil], {evil: pl.DataFrame({evil: [evil]})})
    html = page(renamed, example(evil), own, text=evil)
    assert evil not in html
    assert data(html)["names"][0] == evil
    assert html.count("<script") == page(relations).count("<script")
    assert Parsed(html).text.count(evil) >= 14


def test_family_of_one_has_a_dash_within_and_families_of_two_a_mean() -> None:
    text = Parsed(page(make_relations())).text
    assert text.count("–") == 1  # noqa: RUF001
    assert text.count("2.25") == 2 and text.count("3.12") == 1


def test_page_of_two_models_has_one_pair_and_says_so_once() -> None:
    text = Parsed(page(make_relations(2))).text
    assert "The only pair" in text and "Least similar" not in text
    cells = text[text.index("The only pair") : text.index("Families")]
    assert cells[-4:-1] == ["101", "12.5%", "38.5%"]  # n, A fools B, B fools A


def test_no_pair_is_both_most_and_least_similar() -> None:
    relations = make_relations(4)  # 6 pairs
    text = Parsed(page(relations)).text
    most, least, end = (text.index(t) for t in ("Most similar", "Least similar", "Families"))
    scores = [f"{s:.2f}" for s in sorted(relations.pairs["score"], reverse=True)]
    assert [t for t in text[most:least] if t in scores] == scores[:3]
    assert [t for t in text[least:end] if t in scores] == scores[:2:-1]


def test_page_survives_unknown_values() -> None:
    relations = make_relations(4)
    scores = relations.scores.copy()
    scores[0, 1] = scores[1, 0] = np.nan
    unknown = (pl.col("a") == "model_0") & (pl.col("b") == "model_1")
    pairs = relations.pairs.with_columns(
        pl.when(unknown).then(float("nan")).otherwise(pl.col(c)).alias(c)
        for c in ("score", "low", "high")
    )
    models = relations.models.with_columns(
        clean_accuracy=pl.lit(None, pl.Float64), input_size=pl.lit(None, pl.Int64)
    )
    html = page(replace(relations, scores=scores, pairs=pairs, models=models))
    assert data(html)["pairs"]["score"][0] is None and html.count(f'fill="{NO_SCORE}"') == 2
    text = Parsed(html).text
    assert not any(re.search(r"\b(nan|None)\b", t, re.IGNORECASE) for t in text)


def test_page_without_any_score_says_so() -> None:
    relations = make_relations()
    pairs = relations.pairs.with_columns(pl.lit(None, pl.Float64).alias("score"))
    empty = replace(relations, scores=np.full((3, 3), np.nan), pairs=pairs)
    assert "No pair has a score." in Parsed(page(empty)).text


def test_columns_of_seconds_and_bytes_have_a_unit_and_sort_by_number() -> None:
    table = pl.DataFrame({"craft_seconds": [7200.0], "peak_bytes": [12_000_000], "p": [0.25]})
    html = render("t", "q", [], [Section("s", (), {"": table})], "")
    for heading, cell in (("craft", "2.0 h"), ("peak", "12.0 MB"), ("p", "0.250")):
        assert heading in Parsed(html).text and cell in Parsed(html).text
    assert 'data-value="12000000"' in html and "<caption>" not in html


def test_long_tables_are_not_written_for_latex(tmp_path: Path) -> None:
    """Nor does the page link to a file that there is not."""
    for rows, written in ((TEX_ROWS, True), (TEX_ROWS + 1, False)):
        outputs = Outputs(tmp_path)
        table = pl.DataFrame({"n": range(rows)})
        picture = outputs.figure("long.name", Figure(), table, "Long")
        html = outputs.report("t", "q", [], [Section("S", figures=[picture])], "").read_text()
        assert (tmp_path / "long.name.tex").is_file() == written == ("./long.name.tex" in html)
        assert pl.read_csv(tmp_path / "long.name.csv").equals(table)
        assert ("long.name.tex" in outputs.files) == written


def test_columns_of_numbers_names_and_prose_differ() -> None:
    table = pl.DataFrame({"k": [1, 2], "model": ["vit_s", "m"], "words": ["long " * 20, "short"]})
    html = render("t", "q", [], [Section("s", (), {"": table})], "")
    for style, text in (("n", "1"), ("name", "vit_s"), ("long", "short")):
        assert re.search(rf'<td class="{style}" data-value="[^"]*">{text}</td>', html), text


def test_examples_without_a_bound_claim_none() -> None:
    notes = [
        " ".join(Parsed(render("t", "q", [], [example(eps=eps)], "")).text)
        for eps in (8 / 255, None)
    ]
    assert "more than eps = 8/255" in notes[0] and "15.9 times" in notes[0]
    assert "eps" not in notes[1] and "0.5 times" in notes[1]


def test_difference_maps_eps_to_black_and_white() -> None:
    clean = np.full((1, 3, 3), 100, np.uint8)
    adversarial = clean + np.array([-8, 0, 8])[None, :, None]
    shown = difference(clean, adversarial.astype(np.uint8), 8 / 255)
    assert shown.dtype == np.uint8
    assert shown[0, :, 0].tolist() == [0, 128, 255]
