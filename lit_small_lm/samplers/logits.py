"""From logits to draws: temperature, top-k and top-p (nucleus, arXiv 1904.09751), all in float64.

Nothing here but `probabilities` looks at a value, so that a step of decoding need not wait for the device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_small_lm.errors import RunError


def finite(logits: Tensor) -> Tensor:
    """Whether all logits are finite numbers, a 0-d tensor: the least and the largest tell, NaN where one of them is."""
    least, largest = torch.aminmax(logits)
    return (least > -torch.inf) & (largest < torch.inf)


def refuse_damage(finite: Tensor) -> None:
    """Raise RunError unless logits were `finite`, a 0-d tensor."""
    if not finite:
        raise RunError("the network's logits are not finite; the weights are damaged or training diverged")


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, never: Sequence[int] = ()
) -> Tensor:
    """logits (B, V) -> probabilities (B, V) in float64, with at least one token left.

    Temperature 0 puts everything on the largest logit. Raises RunError when logits are not finite.
    """
    refuse_damage(finite(logits))
    if temperature == 0:
        return torch.nn.functional.one_hot(likeliest(logits, never), logits.shape[-1]).double()
    return law(logits, temperature, top_k, top_p, never)


def pick(
    logits: Tensor,
    uniform: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    never: Sequence[int] | Tensor = (),
) -> Tensor:
    """One id (B,) for each row of finite logits (B, V); uniform (B,) in [0, 1) decides, unless the temperature is 0.

    The same as `draw` of `probabilities`.
    """
    if temperature == 0:
        return likeliest(logits, never)
    return draw(law(logits, temperature, top_k, top_p, never), uniform)


def likeliest(logits: Tensor, never: Sequence[int] | Tensor = ()) -> Tensor:
    """The id (B,) of the largest of logits (B, V), but for those that are never drawn."""
    return _without(logits, never).argmax(-1)


def law(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float, never: Sequence[int] | Tensor = ()
) -> Tensor:
    """Probabilities (B, V) in float64 at a temperature above 0, of finite logits (B, V)."""
    logits = _without(logits.double(), never)
    below = logits - logits.amax(-1, keepdim=True)  # a tiny temperature must not overflow
    probs = torch.softmax(below.div_(temperature), dim=-1)
    if top_k is not None and top_k < probs.shape[-1]:
        least = probs.topk(top_k).values[:, -1:]
        probs = _normed(probs.where(probs >= least, 0))
    if top_p < 1:
        ordered, order = probs.sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # mass of the likelier tokens
        probs = _normed(torch.zeros_like(probs).scatter(1, order, ordered.where(before < top_p, 0)))
    return probs


def _normed(mass: Tensor) -> Tensor:
    return mass / mass.sum(-1, keepdim=True)


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """probs (B, V), uniform (B,) in [0, 1) -> one id a row (B,), by inverting the cumulative distribution."""
    cumulative = probs.cumsum(-1)
    whole = cumulative[:, -1:].contiguous()
    found = torch.searchsorted(cumulative, uniform.unsqueeze(-1) * whole, right=True)
    last = torch.searchsorted(cumulative, whole)  # where the mass is reached; what lies behind has none
    return torch.minimum(found, last).squeeze(-1).clamp(max=probs.shape[-1] - 1)


def _without(logits: Tensor, never: Sequence[int] | Tensor) -> Tensor:
    """logits (B, V) with those of ids that are never drawn at minus infinity."""
    if not len(never):
        return logits
    index = torch.as_tensor(never, dtype=torch.long, device=logits.device)
    return logits.index_fill(-1, index, -torch.inf)
