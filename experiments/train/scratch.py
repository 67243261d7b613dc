"""How accurate is a model that is trained from the labels alone?

On the digits, `python train.py` trains vit_ti: see experiments/results/digits.md.
"""

from omegaconf import DictConfig

from experiments.cli.members import build_members
from experiments.train.session import build_evaluation, named, to_train, train_alone
from netkin.errors import UserError


def run(config: DictConfig) -> None:
    """Run the study of a composed config."""
    evaluation, members = build_evaluation(config), build_members(config, at_least=1)
    if len(members) != 1:
        raise UserError(
            f"experiment=scratch trains one model, got {len(members)}; several are a sweep: "
            f"python train.py -m model={','.join(m.name for m in members[:3])}"
        )
    train_alone(config, evaluation, named(config, to_train(evaluation.task, members[0])))
