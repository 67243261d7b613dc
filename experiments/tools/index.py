"""Which runs are there, how do they differ, and what came out?

Reads summary.json and the config of every run below a folder; nothing is computed again.
"""

from pathlib import Path

from omegaconf import DictConfig

from experiments.cli.finish import terminal
from experiments.cli.index import write_index
from netkin.errors import UserError


def run(config: DictConfig) -> None:
    """Write index.html and index.csv."""
    root = Path(str(config.runs)).expanduser()
    if not root.is_dir():
        raise UserError(f"runs must be a folder of runs such as outputs, got {config.runs}")
    page, entries = write_index(root, str(config.store.dir))
    console = terminal()
    console.print(f"{len(entries)} runs below {root}")
    console.print(f"\nReport   {page}\nTables   {root}/index.csv")
