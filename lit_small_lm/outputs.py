"""Whether every part of a network returns what its kind promises, tried once on the meta device: no weights, no data.

The running network pays nothing for it. A part that needs real values (it calls `.item()`, say) is not tried here.
"""

import functools

import torch
from torch import Tensor, nn

from lit_small_lm.backbone import Backbone
from lit_small_lm.context import Context, Kind, Visibility
from lit_small_lm.errors import RunError
from lit_small_lm.spec import Spec, origin

TIME = 4


def check_outputs(net: Backbone, kind: Kind) -> None:
    """Run a network on the meta device and look at what its parts hand on.

    Args:
        net: built on the meta device.
        kind: the visibility it will be trained under.

    Raises:
        RunError: a part returns another shape or dtype than its kind promises; the part, its file, what was expected
            and what was found are named.
    """
    watches = [*_watches(net)]
    length = min(TIME, net.limit() or TIME) * (2 if kind == "doubled" else 1)
    tokens = torch.zeros(1, length, dtype=torch.long, device="meta")
    try:
        with torch.no_grad():
            net(tokens, Context(Visibility.rows(tokens, kind=kind)))
    except RunError:
        raise
    except Exception:  # what code that does not know the meta device raises is anything; the first step runs it again
        return
    finally:
        for watch in watches:
            watch.remove()


def _watches(net: Backbone):
    """A hook on everything whose input and output are (B, T, D)."""
    spec = net.spec
    if net.embed_positions is not None:
        yield _same(net.embed_positions, spec.positions, "positions")
    for index, (layer, kind) in enumerate(zip(net.layers, spec.layers(net.dims.n_layers), strict=True)):
        parts = {"mixer": kind.mixer, "ffn": kind.ffn, "canon_a": kind.canon, "canon_c": kind.canon}
        for name, part in parts.items():
            yield _same(getattr(layer, name), part, f"layer {index}, {name}")
        for name in ("mixer", "ffn"):
            hook = functools.partial(_check, spec.norm, f"layer {index}, input of the {name}", net.dims.dim)
            yield getattr(layer, name).register_forward_pre_hook(lambda _, args, check=hook: check(args[0]))
    hook = functools.partial(_check, spec.norm, "end of the stream", net.dims.dim)
    yield net.close.register_forward_hook(lambda _, args, output: hook(output))


def _same(module: nn.Module, part: Spec, where: str):
    def hook(_: nn.Module, args: tuple, output: object) -> None:
        _compare(part, where, args[0].shape, args[0].dtype, output)

    return module.register_forward_hook(hook)


def _check(scheme: Spec, where: str, dim: int, found: object) -> None:
    length = found.shape[1] if isinstance(found, Tensor) and found.dim() == 3 else TIME
    _compare(scheme, where, (1, length, dim), torch.get_default_dtype(), found)


def _compare(part: Spec, where: str, shape: tuple[int, ...], dtype: torch.dtype, found: object) -> None:
    if isinstance(found, Tensor) and tuple(found.shape) == tuple(shape) and found.dtype == dtype:
        return
    parts = [part, *(value for value in vars(part).values() if isinstance(value, Spec))]
    name, file = " with ".join(type(one).__name__ for one in parts), origin(type(parts[-1]))
    what = _text(found.shape, found.dtype) if isinstance(found, Tensor) else type(found).__name__
    raise RunError(f"plug-in {name} ({file}): returned {what}; expected {_text(shape, dtype)} ({where})")


def _text(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"
