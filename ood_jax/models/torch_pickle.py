"""Reads the pickles inside PyTorch's weight files without running what they say.

A pickle is a program: the standard library's own reader imports and calls whatever it names. This
one goes through the instructions (by `pickletools`, which only takes them apart) and builds plain
containers and descriptions of tensors. Every other name in it is refused, unseen.
"""

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

STORAGES = {  # torch.<name>Storage -> its numbers
    "Double": np.dtype("<f8"),
    "Float": np.dtype("<f4"),
    "Half": np.dtype("<f2"),
    "BFloat16": np.dtype(jnp.bfloat16),
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("bool"),
}


class Storage(NamedTuple):
    """A block of numbers elsewhere in the file, `length` of them, under `key`."""

    key: str
    dtype: np.dtype
    length: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides in numbers, not checked against the storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Refused(ValueError):
    """The pickle asks for what no weight file needs."""


def read(file: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """One pickle from where `file` is, up to its end: (the object, its storages by key).

    Raises:
      ValueError: no pickle, or one that names anything but tensors and plain containers.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
        return machine.stack.pop(), machine.storages
    except Refused:
        raise
    except (ValueError, TypeError, LookupError, AssertionError, AttributeError) as error:
        raise ValueError(f"its pickle is damaged ({type(error).__name__}: {error})") from None


class _Mark:
    """Where a run of items on the stack begins."""


class _Machine:
    """The pickle's stack and memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSHES:
            self.stack.append(argument)
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise Refused(f"its pickle has the instruction {name}, which no weight file needs")

    def items(self) -> list[Any]:
        """Takes the items above the last mark off the stack, and the mark."""
        at = len(self.stack) - 1
        while not isinstance(self.stack[at], _Mark):
            at -= 1
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def put(self, argument: int | None) -> None:
        self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]

    def name(self, text: str) -> None:
        self.stack.append(_known(text))

    def stack_name(self) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        self.name(" ".join((module, attribute)))

    def tuple_of(self, count: int) -> None:
        taken = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(taken)

    def append(self, items: list[Any]) -> None:
        self.stack[-1].extend(items)

    def new_dict(self) -> None:
        pairs = self.items()
        self.stack.append({})
        self.set_items(pairs)

    def set_items(self, pairs: list[Any]) -> None:
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            self.stack[-1][_plain_key(key)] = value

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Call) or not isinstance(arguments, tuple):
            raise Refused("its pickle calls what is no function")
        self.stack.append(function.build(*arguments))

    def set_state(self) -> None:
        self.stack.pop()  # attributes such as a state dict's _metadata; no array is among them
        if not isinstance(self.stack[-1], dict):
            raise Refused("its pickle gives attributes to what has none")

    def storage(self) -> None:
        kind, of, key, _, length, *view = self.stack.pop()
        if kind != "storage" or not isinstance(of, np.dtype) or (view and view[0] is not None):
            raise Refused("its pickle refers to something outside it that is no storage")
        if not isinstance(key, str) or type(length) is not int or length < 0:
            raise TypeError("a storage without a name or size")
        found = Storage(key, of, length)
        if self.storages.setdefault(key, found) != found:
            raise ValueError(f"storage {key} has two types or sizes")
        self.stack.append(found)


class _Call(NamedTuple):
    build: Callable[..., Any]


def _plain_key(key: Any) -> Any:
    """Tuples within tuples could take for ever to hash."""
    if not isinstance(key, str | int | float):
        raise Refused(f"its pickle has a {type(key).__name__} as a dictionary's key")
    return key


def _ordered_dict(pairs: list[Any] | None = None) -> dict[Any, Any]:
    built = {_plain_key(key): value for key, value in pairs or []}
    if pairs:
        pairs.clear()  # a list that is named again and again would fill the memory
    return built


def _rebuild_tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> Tensor:
    if not (isinstance(storage, Storage) and isinstance(shape, tuple) and len(shape) < 32):
        raise TypeError("a tensor without a storage or shape")
    if len(shape) != len(strides) or any(type(n) is not int for n in (offset, *shape, *strides)):
        raise TypeError("a tensor whose shape, strides and offset do not fit together")
    return Tensor(storage, offset, shape, tuple(strides))


def _size(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape


def _rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


_CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    "torch Size": _size,
    "argparse Namespace": lambda: {},  # the command line that DINO's whole checkpoints keep
}


def _known(name: str) -> _Call | np.dtype:
    if name in _CALLS:
        return _Call(_CALLS[name])
    module, _, attribute = name.partition(" ")
    kind = attribute.removesuffix("Storage")
    if module == "torch" and attribute.endswith("Storage") and kind in STORAGES:
        return STORAGES[kind]
    raise Refused(
        f"its pickle names {name.replace(' ', '.')}, which a file of weights does not need and"
        " which could run code; nothing was run. Save the state dict alone, or as .safetensors"
    )


_PUSHES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
)
_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "MARK": lambda m, _: m.stack.append(_Mark()),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "LIST": lambda m, _: m.stack.append(m.items()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.items())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "DICT": lambda m, _: m.new_dict(),
    "SETITEM": lambda m, _: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, _: m.set_items(m.items()),
    "APPEND": lambda m, _: m.append([m.stack.pop()]),
    "APPENDS": lambda m, _: m.append(m.items()),
    "PUT": lambda m, argument: m.put(argument),
    "BINPUT": lambda m, argument: m.put(argument),
    "LONG_BINPUT": lambda m, argument: m.put(argument),
    "MEMOIZE": lambda m, _: m.put(None),
    "GET": lambda m, argument: m.stack.append(m.memo[int(argument)]),
    "BINGET": lambda m, argument: m.stack.append(m.memo[argument]),
    "LONG_BINGET": lambda m, argument: m.stack.append(m.memo[argument]),
    "GLOBAL": lambda m, argument: m.name(argument),
    "STACK_GLOBAL": lambda m, _: m.stack_name(),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.set_state(),
    "BINPERSID": lambda m, _: m.storage(),
}
