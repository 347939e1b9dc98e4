"""Calls of torch functions, written down as lines of pseudo-code with the shapes of their results.

The one trick is to name late: a call keeps the tensors it took and gave, and only when all is known does each get a
name, that of the module whose output it is if there is one.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

INFIX = {
    "add": "+", "__add__": "+", "sub": "-", "__sub__": "-", "mul": "*", "__mul__": "*", "div": "/", "__truediv__": "/",
    "floor_divide": "//", "__floordiv__": "//", "matmul": "@", "__matmul__": "@", "pow": "**", "__pow__": "**",
    "ge": ">=", "gt": ">", "le": "<=", "lt": "<", "eq": "==", "ne": "!=", "__and__": "&", "__or__": "|",
    "bitwise_and": "&", "bitwise_or": "|", "remainder": "%",
}  # fmt: skip
REVERSED = {"__radd__": "+", "__rsub__": "-", "rsub": "-", "__rmul__": "*", "__rtruediv__": "/", "__rpow__": "**"}
MANY = 3
"""Members of a list that are written out; more of one pattern are written as one."""
BEYOND = 16
"""Sizes up to so many more than T are written T+1, T+2, ..."""
WIDTH = 120
META = torch.device("meta")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for item in value.values() for tensor in tensors_in(item))
    elif isinstance(value, (list, tuple)):
        yield from (tensor for item in value for tensor in tensors_in(item))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in(vars(value))


@dataclass
class Call:
    """One call, or a remark."""

    function: str
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Tensor] = ()
    remark: str = ""
    """The text, where there is no function."""


class Names:
    """What tensors are called, and how sizes are: B, T and multiples of them by letter, `widths` never."""

    def __init__(self, rows: int, positions: int, widths: set[int]) -> None:
        self.rows, self.positions, self.widths = rows, positions, widths
        self.given: dict[int, str] = {}
        self.parameters: dict[int, str] = {}
        self._kept: list[Tensor] = []
        self.start()

    def start(self) -> None:
        """Begin a new section, in which all names may be given again."""
        self.given.clear()
        self._taken: dict[str, int] = {}
        self._count = 0

    def give(self, tensor: Tensor, name: str) -> None:
        """Name a tensor, with a number if the name is taken."""
        self._taken[name] = count = self._taken.get(name, 0) + 1
        self._kept.append(tensor)
        self.given[id(tensor)] = name if count == 1 else f"{name}_{count}"

    def of(self, tensor: Tensor) -> str:
        """The name of an argument; a parameter's is followed by its shape."""
        if id(tensor) in self.parameters:
            return f"{self.parameters[id(tensor)]}[{', '.join(map(str, tensor.shape))}]"
        if id(tensor) not in self.given:
            self.give(tensor, "earlier")
        return self.given[id(tensor)]

    def new(self, tensor: Tensor) -> str:
        """The name of a result."""
        if id(tensor) not in self.given:
            self._count += 1
            self.give(tensor, f"h{self._count}")
        return self.given[id(tensor)]

    def size(self, size: int) -> str:
        """A size in letters where it counts rows or positions."""
        if size in self.widths or size < min(self.rows, self.positions):
            return str(size)
        for unit, letters in ((self.rows * self.positions, "BT"), (self.positions, "T"), (self.rows, "B")):
            if size % unit == 0:
                return letters if size == unit else f"{size // unit}{letters}"
        beyond = size - self.positions
        return f"T+{beyond}" if 0 < beyond < BEYOND else str(size)

    def shape(self, tensor: Tensor) -> str:
        """`(B, T, 384)`."""
        return f"({', '.join(map(self.size, tensor.shape))})"


def written(call: Call, names: Names) -> str:
    """One line: `h = function(arguments)  # shape`."""
    if not call.function:
        return textwrap.fill(call.remark, WIDTH, initial_indent="# ", subsequent_indent="#   ")
    said = _expression(call, names)
    results = ", ".join(map(names.new, call.results))
    shapes = ", ".join(names.shape(tensor) for tensor in call.results)
    line = f"{results} = {said}" if results else said
    return f"{line:<76}  # {shapes}" if shapes else line


def _expression(call: Call, names: Names) -> str:
    args = [_value(arg, names) for arg in call.args]
    if call.function in INFIX and len(args) == 2:
        return f"{args[0]} {INFIX[call.function]} {args[1]}"
    if call.function in REVERSED and len(args) == 2:
        return f"{args[1]} {REVERSED[call.function]} {args[0]}"
    if call.function == "__getitem__":
        return f"{args[0]}[{args[1].strip('(,)')}]"
    if call.function == "__setitem__":
        return f"{args[0]}[{args[1].strip('(,)')}] = {args[2]}"
    if call.function == "return":
        return f"return {', '.join(args)}"
    while args and args[-1] == "None":
        args.pop()
    named = [f"{key}={_value(value, names)}" for key, value in call.kwargs.items()]
    return f"{call.function}({', '.join([*args, *named])})"


def _value(value: Any, names: Names) -> str:
    if isinstance(value, Tensor):
        return names.of(value)
    if isinstance(value, (list, tuple)):
        inside = _joined([_value(item, names) for item in value])
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    if isinstance(value, slice):
        ends = ("" if end is None else _value(end, names) for end in (value.start, value.stop))
        return ":".join(ends)
    if value is Ellipsis:
        return "..."
    if isinstance(value, int) and not isinstance(value, bool):
        return names.size(value)
    if isinstance(value, float):
        said = f"{value:.6g}"
        return said if re.search("[.en]", said) else f"{said}.0"
    return value if isinstance(value, str) else str(value).removeprefix("torch.")


def _joined(items: list[str]) -> str:
    """Members side by side; many that differ in one number alone as one, `experts.{0..7}.weight[32, 16]`."""
    patterns = {re.sub(r"\.\d+\.", ".#.", item) for item in items}
    if len(items) <= MANY or len(patterns) != 1 or patterns == set(items):
        return ", ".join(items)
    numbers = [re.search(r"\.(\d+)\.", item)[1] for item in items]
    return patterns.pop().replace(".#.", f".{{{numbers[0]}..{numbers[-1]}}}.", 1)


def telling(function: Callable, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that change anything: not None, the meta device or the function's default, if it tells."""
    try:
        defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    except (TypeError, ValueError):  # built-in functions do not tell
        defaults = {}
    silent = (None, META)
    return {
        name: value
        for name, value in kwargs.items()
        if isinstance(value, (Tensor, list, tuple))
        or not any(type(value) is type(other) and value == other for other in (*silent, defaults.get(name)))
    }


def saying(module: nn.Module) -> str:
    """`Class: first sentence of its docstring`; PyTorch's own classes by name alone."""
    cls, own = type(module), type(module).__doc__
    if own is None or cls.__module__.startswith("torch."):
        return cls.__name__
    first = re.split(r"\.\s|\n\n", inspect.cleandoc(own))[0]
    return f"{cls.__name__}: {' '.join(first.split()).removesuffix('.')}"


def prime(most: int, avoid: set[int]) -> int:
    """The largest prime of at most `most` that divides none of `avoid`; `most` where there is none."""
    free = (n for n in range(most, 1, -1) if all(a % n for a in avoid if a))
    return next((n for n in free if all(n % divisor for divisor in range(2, n))), most)


def is_in_place(function: str) -> bool:
    """Whether a function of this name changes its first argument."""
    return re.fullmatch(r"__setitem__|__i(?!nit|nvert)\w+__|\w*[a-z0-9]_", function) is not None


def name_of(function: Callable) -> str:
    """What a torch function is called; a property by its own name."""
    name = getattr(function, "__name__", str(function)).removesuffix(".default")
    return function.__self__.__name__ if name == "__get__" else name


def variable(module: str) -> str:
    """What the output of the module at this path is called: the last part, with as many before it as are needed for a
    name that is none of a torch function."""
    parts = module.split(".")
    names = ("_".join(parts[-count:]) for count in range(1, len(parts) + 1))
    return next((name for name in names if name.isidentifier() and getattr(torch, name, None) is None), parts[-1])
