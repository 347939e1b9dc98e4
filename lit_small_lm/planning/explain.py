"""The composed network as flat pseudo-code with shapes, written down while it runs: never a text kept beside the code.

Every layer runs on the meta device, without data or storage, and every torch function that is called on the way is
noted, each module's own first sentence above what it does. The one trick is a number of rows and of positions that
divides nothing else, so that every size of a result can be read back as B, T or a width. It works for any plug-in: of
what cannot run without data (a choice that depends on values) it says so, and lists the parameters.
"""

import contextlib
import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lit_small_lm.backbone import Backbone, Layer
from lit_small_lm.context import Context, Kind, Trace, Visibility
from lit_small_lm.errors import RequestError, first_line
from lit_small_lm.planning.listing import (
    Call,
    Names,
    is_in_place,
    name_of,
    prime,
    saying,
    telling,
    tensors_in,
    variable,
    written,
)
from lit_small_lm.planning.outline import Outline

BRANCHES = ("mixer", "ffn", "canon_a", "canon_c")
"""Parts of a layer whose contract is h -> h of the same shape."""
MOST = 150
"""Lines of one module; a loop over positions has more."""
LONGEST = 127
"""Rows and positions are primes up to this, or up to the longest document that has positions."""


def explain(outline: Outline, kind: Kind = "causal") -> str:
    """The network of `outline` as it evaluates whole rows of one document each, as pseudo-code.

    Every parameter stands where it is used, as `name[its shape]`; B rows, T positions.

    Raises:
        RequestError: parts of the family that do not go together, or one that does not run without data.
    """
    indices = range(outline.dims.n_layers)
    net = outline.network(indices).eval()
    widths = _widths(outline, net)
    positions = prime(min(LONGEST, net.limit() or LONGEST), widths)
    rows = prime(LONGEST, {positions, *widths})
    tokens = torch.zeros(rows, positions, dtype=torch.long, device="meta")
    kind = "block" if kind == "doubled" else kind  # rows are doubled for training alone
    visibility = Visibility.rows(tokens, kind=kind)
    watch = _Watch(Names(rows, positions, widths))
    watch.follow(net, indices)
    watch.fixed = {"tokens": tokens, "positions": visibility.positions}
    watch.close("nothing")
    with torch.no_grad(), watch:
        logits = net(tokens, Context(visibility, trace=_Shared(watch)))
    watch.names.give(logits, "logits")
    watch.close("after")
    return "\n".join(_page(watch.sections, outline, kind))


def _widths(outline: Outline, net: nn.Module) -> set[int]:
    """Every size of a weight and every number in the Specs."""
    found = {size for tensor in net.parameters() for size in tensor.shape}
    return found | set(_numbers(outline.spec.to_dict())) | set(dataclasses.astuple(outline.dims))


def _numbers(record: Any) -> Iterator[int]:
    if isinstance(record, int):
        yield abs(record)
    elif isinstance(record, (list, dict)):
        for item in record.values() if isinstance(record, dict) else record:
            yield from _numbers(item)


class _Watch(TorchFunctionMode):
    """Notes every call of a torch function, by section: before the layers, each layer, after them."""

    def __init__(self, names: Names) -> None:
        super().__init__()
        self.names = names
        self.calls: list[Call] = []
        self.sections: dict[str, list[str]] = {}
        self.paths: set[nn.Module] = set()
        """Modules that give the stream back."""
        self.fixed: dict[str, Tensor] = {}
        """Tensors that have the same name in every section."""
        self._silent = 0
        self._kept: list[Any] = []
        self._used: set[int] = set()

    def follow(self, net: Backbone, indices: Sequence[int]) -> None:
        """Note what runs in each module of the network; its layers are those of `indices`."""
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            inside = name.split(".", 2)[2] if name.startswith("layers.") else name
            self.names.parameters[id(tensor)] = inside
        for name, module in net.named_children():
            if module is not net.layers:
                self._follow(name, module)
        for index, layer in zip(indices, net.layers, strict=True):
            for name, module in layer.named_children():
                self._follow(name, module)
            self.paths |= {layer.mixer_path, layer.ffn_path}
            layer.forward = functools.partial(self._layer, index, layer, layer.forward)

    def _follow(self, prefix: str, module: nn.Module) -> None:
        for name, inner in module.named_modules(prefix=prefix):
            inner.forward = functools.partial(self._module, name, inner, inner.forward)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name, given = name_of(function), {id(tensor) for tensor in tensors_in([args, kwargs])}
        results = [tensor for tensor in tensors_in(result) if id(tensor) not in given]
        if is_in_place(name):
            self._note(Call(name, args, telling(function, kwargs)))
        elif results:
            self._note(Call(name, args, telling(function, kwargs), results))
        return result

    def _note(self, call: Call) -> None:
        self._kept.append(call)  # an id must not be used again
        if not self._silent:
            self._used |= {id(tensor) for tensor in tensors_in([call.args, call.kwargs])}
            self.calls.append(call)

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Note nothing within."""
        self._silent += 1
        try:
            yield
        finally:
            self._silent -= 1

    def close(self, section: str) -> None:
        """End a section: its calls are written down, and names begin anew."""
        if self.calls:
            self.sections[section] = [written(call, self.names) for call in self.calls]
        self.calls = []
        self.names.start()
        for name, tensor in self.fixed.items():
            self.names.give(tensor, name)

    def _layer(self, index: int, layer: Layer, run: Callable, carry: Any, ctx: Context) -> Any:
        if self.calls:
            for tensor in tensors_in(carry):
                self.names.give(tensor, "x")
            self.close("before")
        self._name_carry(carry)
        result = run(carry, ctx)
        unused = [tensor for tensor in layer.parameters() if id(tensor) not in self._used]
        self.calls += [Call("", remark=f"not used here: {self.names.of(tensor)}") for tensor in unused]
        self.calls.append(Call("return", tuple(tensors_in(result))))
        self.close(f"layer {index}")
        self._name_carry(result)
        return result

    def _name_carry(self, carry: Any) -> None:
        for tensor in tensors_in(carry):
            if id(tensor) not in self.names.given:
                self.names.give(tensor, "x")

    def _module(self, name: str, module: nn.Module, run: Callable, *args: Any, **kwargs: Any) -> Any:
        begin = len(self.calls)
        try:
            result = run(*args, **kwargs)
        except Exception as error:
            return self._unfollowed(name, module, args[0], error)
        if len(self.calls) - begin > MOST and module not in self.paths:
            self._shorten(begin + MOST)
        given = tuple(tensors_in([args, kwargs]))
        results = [tensor for tensor in tensors_in(result) if id(tensor) not in map(id, given)]
        if len(self.calls) - begin > 1:
            if results and not self._learned(self.calls[begin:]):  # one line says it
                self.calls[begin:] = [Call(name, given, {}, results)]
            self.calls.insert(begin, Call("", remark=f"{name}  {saying(module)}"))
        if results and id(results[0]) not in self.names.given and len(results) == 1:
            self.names.give(results[0], "x" if module in self.paths else variable(name))
        return result

    def _learned(self, calls: Sequence[Call]) -> dict[int, Tensor]:
        """The parameters that calls read, by id."""
        read = (tensor for call in calls for tensor in tensors_in([call.args, call.kwargs]))
        return {id(tensor): tensor for tensor in read if id(tensor) in self.names.parameters}

    def _shorten(self, begin: int) -> None:
        """Leave out the calls from `begin` on, but not the names of what they read."""
        left, before = self.calls[begin:], self._learned(self.calls[:begin])
        learned = tuple(tensor for key, tensor in self._learned(left).items() if key not in before)
        functions = ", ".join(sorted({call.function for call in left if call.function}))
        said = "".join(f", {self.names.of(tensor)}" for tensor in learned)
        self.calls[begin:] = [Call("", learned, remark=f"and {len(left)} more lines, of {functions}{said}")]

    def _unfollowed(self, name: str, module: nn.Module, h: Tensor, error: Exception) -> Tensor:
        """A part that does not run without data; one whose contract is h -> h gives a result of that shape."""
        if "." in name or isinstance(error, RequestError):
            raise error
        if name not in BRANCHES:
            text = f"--explain: {name} ({type(module).__name__}) does not run without data: {first_line(error)}"
            raise RequestError(text) from error
        with self.silence():
            result = torch.empty_like(h)
        why = f"{name}  {saying(module)}; from here it does not run without data: {first_line(error)}"
        self.calls.append(Call("", remark=why))
        self._note(Call(name, (h, *module.parameters()), {}, [result]))
        return result


class _Shared(Trace):
    """A record of the forward pass whose shared values (masks, rotary tables) are named by their key, not spelt out."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self.watch.silence():
            value = super().once(key, make)
        first, *rest = (str(part) for part in (key if isinstance(key, tuple) else (key,)) if part is not None)
        name, found = f"{first}({', '.join(rest)})" if rest else first, list(tensors_in(value))
        for number, tensor in enumerate(found):
            self.watch.fixed[name if len(found) == 1 else f"{name}[{number}]"] = tensor
        self.watch.names.given |= {id(tensor): name for name, tensor in self.watch.fixed.items()}
        return value


def _page(sections: Mapping[str, list[str]], outline: Outline, kind: Kind) -> Iterator[str]:
    depth, groups, named = outline.dims.n_layers, defaultdict(list), outline.spec.kinds_of_layers()
    kinds = [next(name for name, each in named.items() if each == kind) for kind in outline.spec.layers(depth)]
    for index in range(depth):
        groups[_alike(sections[f"layer {index}"])].append(index)
    yield f"# {depth} layers, {kind}; B rows of T positions, as in evaluation (no dropout)"
    yield from sections["before"]
    for members in groups.values():
        said = ", ".join(dict.fromkeys(kinds[index] for index in members))
        yield f"\n# {_which(members)} (kind: {said})"
        yield from map(_merged, zip(*(sections[f"layer {index}"] for index in members), strict=True))
    yield "\n# after the layers"
    yield from sections["after"]


def _alike(lines: list[str]) -> str:
    """The lines without their decimals: layers that differ in constants alone have the same."""
    return re.sub(r"\d+\.\d+(e-?\d+)?|\d+e-\d+| +", "#", "\n".join(lines))


def _which(members: list[int]) -> str:
    """`each of layers 0 to 4, 6 to 10`."""
    runs: list[list[int]] = []
    for index in members:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    said = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
    return f"layer {said}" if len(members) == 1 else f"each of layers {said}"


def _merged(lines: tuple[str, ...]) -> str:
    """A line of the first of several layers; where a constant of the last is another, the last one's behind it."""
    return lines[0] if lines[0] == lines[-1] else f"{lines[0]}; in the last {lines[-1].split('  #')[0].strip()}"
