"""How the weights of a network lie in memory while text is drawn from it.

PyTorch keeps a linear map as (outputs, inputs). A product with a row or a few is bound by reading that matrix, and CPU
libraries do that faster by whole columns where these are the longer ones: up to three times for the maps into a branch
and twice for the head (AMD EPYC, MKL 2024.2). With many rows there is little difference.
"""

from torch import nn

from lit_small_lm.plugin import Embedding, Linear


def lay_by_outputs(net: nn.Module) -> None:
    """Turn those matrices of a network on a CPU that have more outputs than inputs, so that outputs lie side by side.

    Values, shapes and names stay; sums are taken in another order, so logits change by rounding. For a process
    that only draws text: an optimizer's state lies as weights did, and safetensors does not save such matrices.
    """
    for module in _read_whole(net):
        outputs, inputs = module.weight.shape
        if outputs > inputs and module.weight.device.type == "cpu":
            module.weight.data = module.weight.data.t().contiguous().t()


def _read_whole(net: nn.Module) -> list[nn.Module]:
    """What is read from end to end for every token: linear maps, and an embedding where it is the head."""
    found: list[nn.Module] = [module for module in net.modules() if isinstance(module, Linear)]
    heads = [module for module in found if module.role == "head"]
    tables = [module for module in net.modules() if isinstance(module, Embedding) and module.role == "embedding"]
    return found if heads else found + tables
