"""What W&B is told, read back from the offline run's own file."""

import gc
import json
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import psutil
import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf
from wandb.proto import wandb_internal_pb2 as protobuf

from experiments.cli import runs
from netkin.data.subset import Subset
from netkin.errors import Stopped, UserError
from netkin.tracking import RunInfo, Tracker, WandB, track
from tests.conftest import SMALL, TRAINED, Mistake, run_here

Record = protobuf.Record  # pyright: ignore[reportAttributeAccessIssue]  # made when imported


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the small zoo was trained and compared under W&B."""
    folder = tmp_path_factory.mktemp("logged")
    for file in TRAINED.glob("test_byobnet.*"):  # one that is read and one that is trained
        (folder / "store" / "weights" / "digits").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / "store" / "weights" / "digits")
    done = run_here(*SMALL, "hydra.run.dir=first", "logger=wandb", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def records(folder: Path) -> Iterator[Any]:
    """The protobuf records of the one run below a folder.

    The file is a LevelDB log after a header of 7 bytes: blocks of 32 KiB, in which each chunk has
    a CRC (4 bytes), a length (2), and a type (1): whole, first, middle or last of its record.
    """
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    position, record = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # a trailer too short for a header
            position += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[position : position + 7])
        chunk = data[position + 7 : position + 7 + length]
        assert checksum == zlib.crc32(bytes([kind]) + chunk)
        position += 7 + length
        record = chunk if kind in (1, 2) else record + chunk
        if kind in (1, 4):
            yield Record.FromString(record)


def history(folder: Path) -> dict[str, list]:
    """Everything that was logged: name -> values."""
    found: dict[str, list] = {}
    for record in records(folder):
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            found.setdefault(name, []).append(json.loads(item.value_json))
    return found


def inspected(folder: Path) -> dict[str, Any]:
    """Config, summary and state of the one run below a folder, by W&B's own reader."""
    (run,) = folder.glob("**/wandb/offline-run-*")
    shown = subprocess.run(
        ["wandb", "leet", "inspect", "--summary", "--json", str(run)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(shown.stdout)


def wandb_table(folder: Path, name: str) -> pl.DataFrame:
    """A table that was logged, from the file that W&B would upload."""
    (file,) = folder.glob(f"wandb/offline-run-*/files/media/table/tables/{name}_*.table.json")
    content = json.loads(file.read_text())
    return pl.DataFrame(content["data"], schema=content["columns"], orient="row")


NAME = "digits, pgd eps 48/255, 2 models"


@pytest.mark.slow
def test_wandb_is_told_everything(small_run: Path) -> None:
    run = small_run / "first"
    logged, numbers = history(run), inspected(run)["summary"]
    models = pl.read_csv(run / "models.csv")
    assert numbers["clean_accuracy/least"] == pytest.approx(models["clean_accuracy"].min())
    assert numbers["white_box_success/least"] == pytest.approx(models["white_box_success"].min())
    assert (numbers["members"], numbers["images"]) == (models.height, 100)
    for stage in ("train", "clean", "craft", "transfer"):
        assert numbers[f"seconds/{stage}"] > 0
        assert logged[f"progress/{stage}"][-1] == 1
    for stage in ("clean", "craft", "transfer"):
        assert numbers[f"images_per_second/{stage}"] > 0
    s = pl.read_csv(run / "pairs.csv")["score"].item()
    assert numbers["similarity/mean"] == pytest.approx(s)
    for table in ("similarity", "pairs", "models", "families", "stages", "training"):
        assert logged[f"tables/{table}/_type"] == ["table-file"]
    assert logged["figures/similarity/_type"] == ["image-file"]
    assert logged["report/_type"] == ["html-file"]
    stages = wandb_table(run, "stages")
    assert {(row["stage"], row["model"]) for row in stages.to_dicts()} >= {
        (stage, name) for stage in ("clean", "craft", "transfer") for name in models["model"]
    }
    losses = wandb_table(run, "training").filter(model="vit_ti")["train_loss"]
    assert len(losses) == 4 and losses[3] < losses[0]


@pytest.mark.slow
def test_charts_are_of_what_has_a_course(small_run: Path) -> None:
    """A chart is drawn for each number in the history; members are rows of tables instead."""
    charts = {name for name in history(small_run / "first") if "_type" not in name}
    numbers = {c for c in charts if not c.startswith(("tables/", "figures/", "report", "_"))}
    assert numbers - {"progress/inputs"} == {  # other inputs of a member that looks wrong
        f"progress/{x}"
        for x in ("decode", "train", "clean", "noise", "craft", "transfer", "seconds")
    }


@pytest.mark.slow
def test_the_summary_is_also_a_file(small_run: Path) -> None:
    content = json.loads((small_run / "first" / "summary.json").read_text())
    assert content["state"] == "finished" and content["name"] == NAME
    told = inspected(small_run / "first")["summary"]
    assert content["numbers"] == {name: pytest.approx(told[name]) for name in content["numbers"]}


@pytest.mark.slow
def test_wandb_run_is_grouped_named_and_finished(small_run: Path) -> None:
    found = list(records(small_run / "first"))
    (run,) = (record.run for record in found if record.HasField("run"))
    assert (run.run_group, run.job_type) == ("pairwise-digits", "pairwise")
    assert run.display_name == NAME
    assert list(run.tags) == ["pairwise", "digits", "quick", "pgd"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["attack"]["steps"] == 8 and config["attack"]["eps"] == "48/255"
    assert config["eps"] == pytest.approx(48 / 255) and config["step_size"] == pytest.approx(
        6 / 255
    )
    assert (config["steps"], config["models"], config["images"]) == (8, 2, 100)
    artifacts = [record.artifact for record in found if record.HasField("artifact")]
    (matrix,) = (a for a in artifacts if a.type == "similarity")
    assert {entry.path for entry in matrix.manifest.contents} >= {"similarity.csv", "pairs.csv"}
    (end,) = (record.exit for record in found if record.HasField("exit"))
    assert end.exit_code == 0


@pytest.mark.slow
def test_a_failed_job_finishes_its_run_as_failed(small_run: Path, tmp_path: Path) -> None:
    weights = small_run / "store" / "weights" / "digits" / "vit_ti.safetensors"
    bad = f"{{name: bad, timm: test_resnet, checkpoint: {weights}}}"
    done = run_here(
        f"model.members=[vit_ti,{bad}]",
        *SMALL[1:],
        f"store.dir={small_run / 'store'}",
        "hydra.run.dir=run",
        "logger=wandb",
        cwd=tmp_path,
    )
    assert done.returncode == 1 and "do not fit" in done.stderr
    (end,) = (r.exit for r in records(tmp_path / "run") if r.HasField("exit"))
    assert end.exit_code == 1


LOGGER = {"kind": "wandb", "mode": "offline", "project": "p", "entity": None, "group": None}
LOGGER |= {"tags": []}


def info(folder: Path) -> RunInfo:
    return RunInfo(folder, {}, "group", "job", "name", ())


def started(tracker: Tracker) -> None:
    """Wait for W&B, which starts in a thread."""
    assert isinstance(tracker, WandB) and tracker.run.id


def test_wandb_that_does_not_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(**_: Any) -> None:
        raise OSError("no W&B today")

    monkeypatch.setattr("wandb.init", init)
    with track(LOGGER, info(tmp_path)) as tracker:
        tracker.summary({"a": 1.0})
        tracker.table("b", pl.DataFrame({"c": [1]}))
    (said,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "goes on without it (no W&B today)" in said
    assert json.loads((tmp_path / "summary.json").read_text())["numbers"] == {"a": 1.0}


@pytest.mark.parametrize("error", [None, SystemExit(-1), Stopped(143), ValueError("the run's")])
def test_the_end_of_a_run_is_its_own_whatever_happens_to_wandb(
    tmp_path: Path,
    error: BaseException | None,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """W&B's process gets what SLURM sends to all processes of a job, and dies of it."""
    before, raised = set(psutil.Process().children()), None
    try:
        with track(LOGGER, info(tmp_path)) as tracker:
            started(tracker)
            tracker.summary({"a": 1.0})
            (core,) = set(psutil.Process().children()) - before
            core.terminate()
            for process in gc.get_objects():  # W&B does not wait for it then
                if type(process) is subprocess.Popen and process.pid == core.pid:
                    process.wait()
            for _ in range(3):
                tracker.summary({"b": 2.0})
            if error is not None:
                raise error
    except BaseException as caught:
        raised = caught
    assert raised is error
    assert caplog.text.count("W&B has failed, and this run goes on without it") == 1
    assert capfd.readouterr().err == ""


def test_a_full_disk_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Which W&B's own process meets, and goes on."""
    disk = tmp_path / "wandb"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        with track(LOGGER, info(tmp_path)) as tracker:
            started(tracker)
            with pytest.raises(OSError, match="No space left"):
                (disk / "full").write_bytes(bytes(2**21))
            tracker.summary({"a": "x" * 10000})
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    (said,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "could not write to" in said or "No space left" in said
    assert said.endswith("metrics are not recorded in full, results are kept")


def test_a_sweeps_jobs_share_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hydra = SimpleNamespace(
        mode=RunMode.MULTIRUN,
        sweep=SimpleNamespace(dir=str(tmp_path / "sweep")),
        overrides=SimpleNamespace(task=["attack.eps=8/255", "attack.steps=3"]),
        runtime=SimpleNamespace(output_dir=str(tmp_path / "0")),
    )
    monkeypatch.setattr(runs.HydraConfig, "get", lambda: hydra)
    config = OmegaConf.create(
        {"experiment": {"name": "craft"}, "dataset": {"name": "digits"}, "attack": {"eps": "8/255"}}
    )
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").write_text(
        "hydra: {overrides: {task: ['attack.eps=8/255,16/255', attack.steps=3]}}"
    )
    evaluation: Any = SimpleNamespace(
        attack=SimpleNamespace(name="pgd", eps=8 / 255, steps=3),
        subset=Subset("full", ("0",), (0,), (0,), ("a",), ("",)),
    )
    found = runs.run_info(config, evaluation, 1, ["vit_s"])
    assert found.group == "craft-digits-sweep"
    assert found.name == "attack.eps=8/255"
    assert found.config["eps"] == 8 / 255 and found.config["attack"]["eps"] == "8/255"
    hydra.mode = RunMode.RUN
    alone = runs.run_info(config, evaluation, 1, ["vit_s"])
    assert alone.name == "digits, pgd eps 8/255, vit_s"


def test_one_id_is_not_for_the_jobs_of_a_sweep(
    mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    assert "WANDB_RUN_ID is set, which all jobs" in mistake("attack.steps=2,3", "-m")


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        ({"kind": "tensorbord"}, "kind must be wandb, tensorboard, csv or none"),
        ({"mode": "ofline"}, "mode must be online or offline"),
        ({"project": "a/b"}, "Invalid project name"),
    ],
)
def test_mistakes(tmp_path: Path, logger: dict, message: str, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(UserError, match=message), track({**LOGGER, **logger}, info(tmp_path)):
        raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["", "dryrun", "offline"])
def test_any_name_and_a_home_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    """Names of datasets and models become names of groups, tags and artifacts."""
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setenv("WANDB_MODE", mode)
    name = "Vögel & [b]birds[/b] / 2" + 200 * "x"
    file = tmp_path / "a.csv"
    file.write_text("a")
    given = replace(info(tmp_path), group=name, job_type=name, name=name, tags=(name, "", "a", "a"))
    with track({**LOGGER, "tags": [3, ""]}, given) as tracker:
        tracker.summary({f"accuracy/{name}": 0.5})
        tracker.table("pairs", pl.DataFrame({name: [1]}))
        tracker.artifact(f"similarity-{name}", "similarity", [file])
    assert not [record for record in caplog.records if record.name.startswith("netkin")]
    found = list(records(tmp_path))
    (artifact,) = (
        r.artifact for r in found if r.HasField("artifact") and r.artifact.type[0] == "s"
    )
    assert artifact.name.startswith("similarity-V-gel-b-birds-b-2x") and len(artifact.name) == 128
    for entry in artifact.manifest.contents:  # what `wandb sync` would upload
        assert Path(entry.local_path).is_relative_to(tmp_path)
    (run,) = (record.run for record in found if record.HasField("run"))
    assert [len(tag) for tag in run.tags] == [64, 1, 1] and run.tags[-1] == "3"


@pytest.mark.parametrize("project", ["netkin", "my project"])
def test_the_summary_is_told_whenever_wandb_starts(
    project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B starts at once for a name that only it can judge, as it does online."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with track({**LOGGER, "project": project}, info(tmp_path)) as tracker:
        tracker.summary({"first": 1.0})
        tracker.curve([{"a": 1.0, "epoch": 1}], step="epoch")
        tracker.summary({"second": 2.0})
    told = inspected(tmp_path)["summary"]
    assert (told["first"], told["second"]) == (1.0, 2.0)
