"""An unpickler that runs nothing: a machine of its own for every opcode of pickle protocols 0 to 5.

It knows plain containers and values. Any global of the pickle is a :class:`Global`, which is a name and no
more. What a global would make when called is an :class:`Opaque`, which takes whatever the pickle does to it,
unless the caller has a maker for that name. Nothing is imported, looked up or called but those makers, and
nothing outside the machine changes, so that any number of threads may read at once.
"""

from __future__ import annotations

import dataclasses
import pickle
import struct
from collections.abc import Callable, Mapping

#: Bytes from this length on stay where they are, as a view of the data.
BULK = 1 << 12
# What calls may copy, beyond the pickle's own length: it can name one long text any number of times.
_COPIED = 1 << 20
_SIZED = (str, bytes, memoryview, tuple, list, dict, set)
_ATOMS = (str, int, float, bytes, bool, type(None))


class BrokenPickle(ValueError):
    """The data is no pickle, or one that no Python program wrote."""


@dataclasses.dataclass(frozen=True)
class Global:
    """The name "module.name" of what a pickle would have imported."""

    name: str


class Opaque:
    """Stands for an object that a pickle would have made by calling ``name``."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class Ordered(dict):
    """An OrderedDict; ``attributes`` are those that the pickle gives it, as torch's ``_metadata``."""

    attributes: Mapping = {}


class Buildable:
    """What a maker may return where the pickle has more to say of it: ``build`` gets that state."""

    def build(self, state: object) -> None:
        raise NotImplementedError


Maker = Callable[..., object]


def _ordered(pairs: object = (), *_: object) -> Ordered:
    return Ordered((_key(k), v) for k, v in (pairs.items() if isinstance(pairs, Mapping) else pairs))


def _set(items: object = ()) -> set:
    return {_key(i) for i in items}


def _bytes(data: object = b"", *_: object) -> bytes:
    if not isinstance(data, (bytes, memoryview)):
        raise BrokenPickle("makes bytes of what is none")
    return bytes(data)


#: Containers and values that pickles make by calls.
PLAIN: dict[str, Maker] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda *factory: Ordered(),
    "collections.Counter": _ordered,
    "_codecs.encode": lambda text, code="latin1": text.encode("latin1") if code == "latin1" else Opaque(code),
    "torch.Size": lambda sizes=(): tuple(sizes),
    **{
        f"{module}.{name}": maker
        for module in ("builtins", "__builtin__")
        for name, maker in (("set", _set), ("frozenset", _set), ("bytes", _bytes), ("bytearray", _bytes))
    },
}


def _is_atom(value: object) -> bool:
    # Any number of larger integers have one hash.
    return type(value) in _ATOMS and (type(value) is not int or -(1 << 60) < value < 1 << 60)


def _key(value: object) -> object:
    """``value`` if hashing it is safe and quick, else something in its place."""
    if _is_atom(value) or isinstance(value, (Global, Opaque)):
        return value
    if type(value) is tuple and all(map(_is_atom, value)):
        return value
    return bytes(value) if isinstance(value, memoryview) else Opaque(type(value).__name__)


class Machine:
    """Runs one pickle.

    Args:
        data: what holds the pickle; views of it are handed out for bytes of BULK and more.
        at: where the pickle starts in it; afterwards, where it ended.
        makers: by the names of globals, what stands in for a call of each. They get the pickle's arguments.
        persistent: gets what the pickle calls persistent ids, and returns what they stand for.
    """

    def __init__(
        self,
        data: memoryview,
        at: int = 0,
        makers: Mapping[str, Maker] | None = None,
        persistent: Callable[[object], object] | None = None,
    ):
        self.data, self.at = data, at
        self.makers = {**PLAIN, **(makers or {})}
        self.persistent = persistent
        self.stack: list = []
        self.below: list[list] = []
        self.memo: dict[int, object] = {}
        self._left = len(data) + _COPIED

    def run(self) -> object:
        """What was pickled. BrokenPickle for whatever is wrong with it."""
        data, operations = self.data, _OPERATIONS
        try:
            while (code := data[self.at]) != _STOP:
                self.at += 1
                operations[code](self)
            self.at += 1
            return self.stack.pop()
        except BrokenPickle:
            raise
        except RecursionError:
            raise BrokenPickle("nested too deeply") from None
        # The data decides what meets what, so that any of these can come of it.
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
            raise BrokenPickle(f"{type(error).__name__} at byte {self.at}") from None

    # Reading the data

    def take(self, count: int) -> memoryview:
        start, self.at = self.at, self.at + count
        if self.at > len(self.data):
            raise BrokenPickle("ends too early")
        return self.data[start : self.at]

    def number(self, form: struct.Struct) -> int | float:
        value = form.unpack_from(self.data, self.at)[0]
        self.at += form.size
        return value

    def byte(self) -> int:
        value = self.data[self.at]
        self.at += 1
        return value

    def line(self) -> str:
        window, start = self.data, self.at
        for step in range(start, len(window), 256):
            found = bytes(window[step : step + 256]).find(b"\n")
            if found >= 0:
                self.at = step + found + 1
                return str(window[start : step + found], "latin1")
        raise BrokenPickle("ends too early")

    def text(self, count: int) -> str:
        return str(self.take(count), "utf-8", "surrogatepass")

    def bytes(self, count: int) -> bytes | memoryview:
        view = self.take(count)
        return view if count >= BULK else bytes(view)

    # The stack

    def marked(self) -> list:
        """What lies above the last mark, which goes away with it."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def set_items(self, items: list) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update((_key(k), v) for k, v in zip(items[::2], items[1::2], strict=True))
        elif not isinstance(target, Opaque):
            raise BrokenPickle("sets an item of no dict")

    def append(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, (Opaque, Ordered)):
            raise BrokenPickle("appends to no list")

    def add_items(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is set:
            target.update(map(_key, items))
        elif not isinstance(target, Opaque):
            raise BrokenPickle("adds to no set")

    def call(self, function: object, arguments: object) -> object:
        if type(arguments) is not tuple:
            raise BrokenPickle("calls with no tuple")
        if isinstance(function, Global):
            maker = self.makers.get(function.name)
            if maker is None:
                return Opaque(function.name)
            self._left -= sum(len(a) for a in arguments if isinstance(a, _SIZED))
            if self._left < 0:
                raise BrokenPickle("makes far more than it holds")
            return maker(*arguments)
        if isinstance(function, Opaque):
            return Opaque(function.name)
        raise BrokenPickle("calls what is no global")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Buildable):
            target.build(state)
        elif isinstance(target, Ordered):
            if isinstance(state, dict):
                target.attributes = state
        elif not isinstance(target, Opaque):
            raise BrokenPickle("gives a state to no object")

    def store(self, index: int) -> None:
        self.memo[index] = self.stack[-1]


_U16, _U32, _U64 = (struct.Struct(f"<{c}") for c in "HIQ")
_I32, _BE_F64 = struct.Struct("<i"), struct.Struct(">d")


def _integer(text: str) -> int:
    return {"00": False, "01": True}.get(text) if text in ("00", "01") else int(text.rstrip("L"))


def _long(m: Machine, count: int) -> int:
    if count < 0:
        raise BrokenPickle("an integer of a negative size")
    return int.from_bytes(m.take(count), "little", signed=True)


def _quoted(text: str) -> str:
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        raise BrokenPickle("a string without quotes")
    return text[1:-1]


def _replace(m: Machine, count: int, make: Callable[..., object]) -> None:
    """Put what ``make`` gives of the last ``count`` items in their place."""
    if len(m.stack) < count:
        raise BrokenPickle("takes more than there is")
    items = m.stack[-count:]
    m.stack[-count:] = [make(*items)]


def _push(read: Callable[[Machine], object]) -> Callable[[Machine], None]:
    return lambda m: m.stack.append(read(m))


def _above(act: Callable[[Machine, list], None]) -> Callable[[Machine], None]:
    """Something done to the item under the mark with those above it."""
    return lambda m: act(m, m.marked())


def _gathered(make: Callable[[list], object]) -> Callable[[Machine], None]:
    """The items above the mark as one."""

    def run(m: Machine) -> None:
        items = m.marked()
        m.stack.append(make(items))

    return run


def _mark(m: Machine) -> None:
    m.below.append(m.stack)
    m.stack = []


def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.stack = m.below.pop()


def _mapping(items: list) -> dict:
    return {_key(k): v for k, v in zip(items[::2], items[1::2], strict=True)}


def _two(m: Machine, act: Callable[[list], None]) -> None:
    """``act`` with the last two items, on the one below them."""
    items = m.stack[-2:]
    del m.stack[-2:]
    act(items)


# The opcodes that checkpoints are made of, without a call more than needed.


def _small(m: Machine) -> None:
    m.stack.append(m.data[m.at])
    m.at += 1


def _text(m: Machine) -> None:
    start = m.at + 4
    end = m.at = start + _U32.unpack_from(m.data, m.at)[0]
    if end > len(m.data):
        raise BrokenPickle("ends too early")
    m.stack.append(str(m.data[start:end], "utf-8", "surrogatepass"))


def _get(m: Machine) -> None:
    m.stack.append(m.memo[m.data[m.at]])
    m.at += 1


def _long_get(m: Machine) -> None:
    m.stack.append(m.memo[_U32.unpack_from(m.data, m.at)[0]])
    m.at += 4


def _put(m: Machine) -> None:
    m.memo[m.data[m.at]] = m.stack[-1]
    m.at += 1


def _long_put(m: Machine) -> None:
    m.memo[_U32.unpack_from(m.data, m.at)[0]] = m.stack[-1]
    m.at += 4


def _pair(m: Machine) -> None:
    last = m.stack.pop()
    m.stack[-1] = (m.stack[-1], last)


def _reduce(m: Machine) -> None:
    arguments = m.stack.pop()
    m.stack[-1] = m.call(m.stack[-1], arguments)


def _named_global(m: Machine) -> None:
    _replace(m, 2, lambda module, name: Global(f"{module}.{name}"))


def _instance(m: Machine) -> None:
    function = Global(f"{m.line()}.{m.line()}")
    arguments = tuple(m.marked())
    m.stack.append(m.call(function, arguments))


def _object(m: Machine) -> None:
    function, *arguments = m.marked()
    m.stack.append(m.call(function, tuple(arguments)))


def _persistent(m: Machine, identity: object) -> object:
    if m.persistent is None:
        raise BrokenPickle("refers to something outside of it")
    return m.persistent(identity)


def _refuse(why: str) -> Callable[[Machine], None]:
    def run(m: Machine) -> None:
        raise BrokenPickle(why)

    return run


def _new_with_names(function: object, arguments: object, names: object) -> object:
    return (
        Opaque(function.name) if isinstance(function, (Global, Opaque)) else _refuse("makes no object")(None)
    )


_CODES: dict[bytes, Callable[[Machine], None]] = {
    pickle.PROTO: lambda m: m.byte(),
    pickle.FRAME: lambda m: m.number(_U64),
    pickle.MARK: _mark,
    pickle.POP: _pop,
    pickle.POP_MARK: lambda m: m.marked(),
    pickle.DUP: lambda m: m.stack.append(m.stack[-1]),
    # Values
    pickle.NONE: _push(lambda m: None),
    pickle.NEWTRUE: _push(lambda m: True),
    pickle.NEWFALSE: _push(lambda m: False),
    pickle.INT: _push(lambda m: _integer(m.line())),
    pickle.LONG: _push(lambda m: int(m.line().rstrip("L"))),
    pickle.BININT: _push(lambda m: m.number(_I32)),
    pickle.BININT1: _small,
    pickle.BININT2: _push(lambda m: m.number(_U16)),
    pickle.LONG1: _push(lambda m: _long(m, m.byte())),
    pickle.LONG4: _push(lambda m: _long(m, m.number(_I32))),
    pickle.FLOAT: _push(lambda m: float(m.line())),
    pickle.BINFLOAT: _push(lambda m: m.number(_BE_F64)),
    pickle.STRING: _push(lambda m: _quoted(m.line())),
    pickle.BINSTRING: _push(lambda m: str(m.take(m.number(_I32) % (1 << 32)), "latin1")),
    pickle.SHORT_BINSTRING: _push(lambda m: str(m.take(m.byte()), "latin1")),
    pickle.UNICODE: _push(lambda m: m.line().encode("latin1").decode("raw-unicode-escape")),
    pickle.BINUNICODE: _text,
    pickle.SHORT_BINUNICODE: _push(lambda m: m.text(m.byte())),
    pickle.BINUNICODE8: _push(lambda m: m.text(m.number(_U64))),
    pickle.BINBYTES: _push(lambda m: m.bytes(m.number(_U32))),
    pickle.SHORT_BINBYTES: _push(lambda m: m.bytes(m.byte())),
    pickle.BINBYTES8: _push(lambda m: m.bytes(m.number(_U64))),
    pickle.BYTEARRAY8: _push(lambda m: m.bytes(m.number(_U64))),
    pickle.NEXT_BUFFER: _refuse("keeps bytes outside of it"),
    pickle.READONLY_BUFFER: lambda m: None,
    # Containers
    pickle.EMPTY_LIST: _push(lambda m: []),
    pickle.EMPTY_DICT: _push(lambda m: {}),
    pickle.EMPTY_SET: _push(lambda m: set()),
    pickle.EMPTY_TUPLE: _push(lambda m: ()),
    pickle.LIST: _gathered(list),
    pickle.TUPLE: _gathered(tuple),
    pickle.DICT: _gathered(_mapping),
    pickle.FROZENSET: _gathered(lambda items: set(map(_key, items))),
    pickle.TUPLE1: lambda m: _replace(m, 1, lambda *items: items),
    pickle.TUPLE2: _pair,
    pickle.TUPLE3: lambda m: _replace(m, 3, lambda *items: items),
    pickle.APPEND: lambda m: m.append([m.stack.pop()]),
    pickle.APPENDS: _above(Machine.append),
    pickle.SETITEM: lambda m: _two(m, m.set_items),
    pickle.SETITEMS: _above(Machine.set_items),
    pickle.ADDITEMS: _above(Machine.add_items),
    # The memo
    pickle.GET: _push(lambda m: m.memo[int(m.line())]),
    pickle.BINGET: _get,
    pickle.LONG_BINGET: _long_get,
    pickle.PUT: lambda m: m.store(int(m.line())),
    pickle.BINPUT: _put,
    pickle.LONG_BINPUT: _long_put,
    pickle.MEMOIZE: lambda m: m.store(len(m.memo)),
    # What other unpicklers import, call and change
    pickle.GLOBAL: _push(lambda m: Global(f"{m.line()}.{m.line()}")),
    pickle.STACK_GLOBAL: _named_global,
    pickle.EXT1: _push(lambda m: Global(f"extension {m.byte()}")),
    pickle.EXT2: _push(lambda m: Global(f"extension {m.number(_U16)}")),
    pickle.EXT4: _push(lambda m: Global(f"extension {m.number(_I32)}")),
    pickle.REDUCE: _reduce,
    pickle.NEWOBJ: lambda m: _replace(m, 2, m.call),
    pickle.NEWOBJ_EX: lambda m: _replace(m, 3, _new_with_names),
    pickle.INST: _instance,
    pickle.OBJ: _object,
    pickle.BUILD: Machine.build,
    pickle.PERSID: _push(lambda m: _persistent(m, m.line())),
    pickle.BINPERSID: lambda m: _replace(m, 1, lambda identity: _persistent(m, identity)),
}  # fmt: skip

_STOP = pickle.STOP[0]
_OPERATIONS = [_refuse(f"has no opcode {code}") for code in range(256)]
for _code, _run in _CODES.items():
    _OPERATIONS[_code[0]] = _run
