"""What a forward pass of a model costs."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from netkin.errors import UserError
from netkin.zoo.build import blueprint, preprocessing
from netkin.zoo.member import Member
from netkin.zoo.task import Task


def flops(member: Member, task: Task) -> int | None:
    """Floating-point operations of matrix products and convolutions for one image at the member's
    own input size; a multiplication and an addition are two. Nothing is computed or downloaded.

    None for a network that does not run on torch's meta device.
    """
    try:
        own = preprocessing(member, task)
        net = blueprint(member, task).eval()
        side = own.view.input_size
        device = next(net.parameters()).device
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.empty((1, len(own.mean), side, side), device=device))
    except (UserError, RuntimeError, NotImplementedError, StopIteration):
        return None
    return counter.get_total_flops()
