"""The settings that a configuration written in Python holds, read without running it.

mmengine and mmcv store their configuration beside the weights as the text of a Python file: assignments of
literals and calls of ``dict``. Anything else in it becomes :data:`UNKNOWN`.
"""

from __future__ import annotations

import ast


class _Unknown:
    def __repr__(self) -> str:
        return "a computed value"


#: Stands for what only running the text could tell.
UNKNOWN = _Unknown()
# Values in that of one name. A real configuration has some hundreds.
_MOST = 100_000


def parse(text: str) -> dict[str, object] | None:
    """The values of the names that ``text`` assigns; None where it is no Python."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names: dict[str, object] = {}
    sizes: dict[int, tuple[int, object]] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                value = _value(node.value, names)
                names[node.targets[0].id] = value if _size(value, sizes) <= _MOST else UNKNOWN
            except RecursionError:
                return None
    return names


def _size(value: object, known: dict[int, tuple[int, object]]) -> int:
    """Number of values in a value. A list may be in it often: ``known`` has its size, and keeps it alive."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts), value
    return known[id(value)][0]


def _value(node: ast.expr, names: dict[str, object]) -> object:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return names.get(node.id, UNKNOWN)
        case ast.List() | ast.Tuple():
            return [_value(n, names) for n in node.elts]
        case ast.Dict():
            return {_value(k, names) if k else UNKNOWN: _value(v, names) for k, v in _pairs(node)}
        case ast.Call(func=ast.Name(id="dict"), args=[]):
            return {k.arg or UNKNOWN: _value(k.value, names) for k in node.keywords}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
    return UNKNOWN


def _pairs(node: ast.Dict):
    return (
        (k if isinstance(k, ast.Constant) else None, v) for k, v in zip(node.keys, node.values, strict=True)
    )
