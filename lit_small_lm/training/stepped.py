"""State that moves once per optimizer step, such as a router's bias: who is told what, summed over processes."""

from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor, nn

from lit_small_lm.roles import Stepped


def move(
    net: nn.Module, tallies: Mapping[Hashable, Tensor], reduce: Callable[..., Tensor], taken: Tensor | None = None
) -> None:
    """Tell every `Stepped` module of a network the tally under its address; `reduce` sums over processes.

    Where `taken` is given and false (the optimizer step was left out), what moved is put back.

    Processes that share one share of the data count it alike, so that only the scale of a tally depends on them.
    """
    modules = net.modules() if tallies else ()
    told = [module for module in modules if isinstance(module, Stepped) and module.address in tallies]
    if not told:
        return
    parts = [tallies[module.address] for module in told]
    total = reduce(torch.cat([part.flatten() for part in parts]), reduce_op="sum")
    for module, part, whole in zip(told, parts, total.split([part.numel() for part in parts]), strict=True):
        buffers = [getattr(module, name) for name in module.moving if taken is not None]
        before = [buffer.clone() for buffer in buffers]
        module.after_step(whole.view_as(part))
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(torch.where(taken, buffer, value))
