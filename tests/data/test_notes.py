"""What is noted of a dataset reaches its user, before the work and on the page."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import timm
import torch

from tests.conftest import run_here
from tests.data.conftest import picture
from tests.helpers import page_text


@pytest.mark.slow
def test_notes_are_printed_first_and_stand_on_the_page(tmp_path: Path) -> None:
    for i, name in enumerate(("9/a.png", "9/b.png", "10/c.png")):
        picture(tmp_path / "root" / "val" / name, i)
    (tmp_path / "root" / "val" / "9" / "notes.txt").write_text("x")
    (tmp_path / "root" / "val" / "9" / "gone.png").symlink_to("/nowhere.png")
    members = []
    for name in ("test_resnet", "test_byobnet"):
        net: Any = timm.create_model(name, num_classes=2)
        head = net.get_classifier()
        torch.nn.init.zeros_(head.weight)
        head.bias.data = torch.tensor([0.0, 1.0])  # predicts the second class: 9 in text order
        torch.save(net.state_dict(), tmp_path / f"{name}.pth")
        members.append(f"{{name: {name}, timm: {name}, checkpoint: {tmp_path / name}.pth}}")
    done = run_here(
        *("dataset=folder", "dataset.name=numbers", f"dataset.root={tmp_path / 'root'}"),
        *("dataset.on_error=skip", f"model.members=[{','.join(members)}]", "attack.steps=1"),
        *("score.bootstrap=10", "logger=none", "hydra.run.dir=text"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    page = page_text(tmp_path / "text" / "report.html")
    notes = (
        f"Left out 1 file or folder of {tmp_path}/root/val: 1 .txt.",
        "Class folders are in text order (10, ...)",
    )
    for note in notes:
        assert printed.index(note) < printed.index(" fool each other on ") < printed.rindex(note)
        assert note in page
    assert "1 images could not be read and were left out: 9/gone.png (No such file" in page
    models = pl.read_csv(tmp_path / "text" / "models.csv")
    assert models["clean_accuracy"].to_list() == [2 / 3, 2 / 3]  # two of three images are a 9
