"""What workers run: functions of (context, item, advance) in a module, as processes need them.

The context is (setting, training). They import the passes only when there is work, so that a run
with everything in the store starts sooner.
"""

from typing import Any

from netkin.jobs.pool import Advance
from netkin.jobs.results import Result
from netkin.passes.decode import Undecoded, decode
from netkin.passes.resize import Unresized
from netkin.passes.setting import Setting
from netkin.passes.stored import Source, Target
from netkin.store.lease import lease
from netkin.training.weights import Training, is_trained
from netkin.zoo.member import Member

PRELOAD = ("netkin.training.train", "netkin.passes.craft", "netkin.passes.transfer")


def decode_work(context: tuple[Setting, Any], item: Undecoded, advance: Advance) -> Result:
    """Decode a shard of images."""
    return decode(context[0], item, advance)


def train_work(context: tuple[Setting, Training], member: Member, advance: Advance) -> Result:
    """Train a member that lacks weights, unless another process does."""
    setting, training = context
    file = setting.weights(member)
    assert file is not None
    with lease(setting.store.root, file) as held:
        if not held:
            return Result(remaining=member)
        if is_trained(training, member):
            advance(training.recipe.epochs)
            return Result()
        from netkin.training.train import train

        return train(training, member, advance)


def clean_work(context: tuple[Setting, Any], member: Member, advance: Advance) -> Result:
    """A member's clean pass."""
    from netkin.passes.clean import clean_pass

    return clean_pass(context[0], member, advance)


def noise_work(context: tuple[Setting, Any], member: Member, advance: Advance) -> Result:
    """A member's pass under noise."""
    from netkin.passes.control_passes import noise_pass

    return noise_pass(context[0], member, advance)


def resize_work(context: tuple[Setting, Any], item: Unresized, advance: Advance) -> Result:
    """A member's pass on others' views."""
    from netkin.passes.control_passes import resize_pass

    return resize_pass(context[0], item, advance)


def craft_work(context: tuple[Setting, Any], source: Source, advance: Advance) -> Result:
    """Craft a source's adversarial images."""
    from netkin.passes.craft import craft

    return craft(context[0], source, advance)


def transfer_work(context: tuple[Setting, Any], target: Target, advance: Advance) -> Result:
    """Evaluate a target on sources' adversarial images."""
    from netkin.passes.transfer import transfer

    return transfer(context[0], target, advance)
