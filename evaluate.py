"""python evaluate.py [experiment=pairwise] [group=option] [name=value]; see --help."""

if __name__ == "__main__":
    from experiments.cli import stop

    stop.before_work()  # the imports below take seconds

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from experiments.cli.launch import launch, run_study

CONF = str(Path(__file__).parent / "conf")


@hydra.main(version_base="1.3", config_path=CONF, config_name="evaluate")
def main(config: DictConfig) -> Any:
    return run_study(config, "evaluate")


if __name__ == "__main__":
    launch(main)
