"""Which module of the library imports which, read from the sources: a table of the rooms, and circles.

    python -m bench.rooms [--tree DIR]

A room is a folder of stdc_fast/, or its loose modules together; kernels/ is one too. Each cell of the table
counts how often the row's room imports a module of the column's room, also inside functions.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Package names by the folders of a tree that hold them.
PACKAGES = {"stdc_fast": "stdc_fast", "kernels": "stdc_fast.kernels"}


@dataclasses.dataclass(frozen=True)
class Import:
    """One module of the library that another one imports.

    Attributes:
        module, target: full names. ``from a import b`` has target ``a.b`` if that is a module, else ``a``.
        line: in the module's file.
        inside: whether a function imports it, when called, and not the module, when imported.
    """

    module: str
    target: str
    line: int
    inside: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def read(tree: Path) -> list[Import]:
    """All imports of the library's modules by each other, except those for type checkers."""
    files: dict[str, Path] = {}
    for folder, package in PACKAGES.items():
        for file in sorted((tree / folder).rglob("*.py")):
            parts = file.relative_to(tree / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            files[".".join((package, *parts))] = file
    found = []
    for module, file in files.items():
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for node, inside in _nodes(ast.parse(file.read_text()).body, False):
            targets = dict.fromkeys(_targets(node, package, files.keys()))
            found += [Import(module, target, node.lineno, inside) for target in targets]
    return found


def _nodes(body: Iterable[ast.AST], inside: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, inside
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _nodes(node.orelse, inside)
        else:
            function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from _nodes(ast.iter_child_nodes(node), inside or function)


def _targets(node: ast.Import | ast.ImportFrom, package: str, modules: Iterable[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in modules)
        return
    parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
    source = ".".join([*parents, *filter(None, [node.module])])
    for alias in node.names:
        name = f"{source}.{alias.name}"
        if name in modules:
            yield name
        elif source in modules:
            yield source


def rooms(tree: Path) -> list[str]:
    """The folders of the library that hold modules, and "stdc_fast" for its loose ones."""
    return sorted(
        {"kernels", "stdc_fast", *(file.parent.name for file in tree.glob("stdc_fast/*/__init__.py"))}
    )


def circles(imports: Iterable[Import]) -> list[list[str]]:
    """Modules that import each other, by way of others too; each circle sorted.

    That a module's packages are imported before it is left out of account.
    """
    needs: dict[str, set[str]] = {}
    for one in imports:
        if one.module != one.target:
            needs.setdefault(one.module, set()).add(one.target)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = needs.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    reach = {module: reached(module) for module in needs}
    found = {
        tuple(sorted(other for other in reach[module] if module in reach.get(other, ())))
        for module in needs
        if module in reach[module]
    }
    return [list(circle) for circle in sorted(found)]


def between(imports: Iterable[Import], names: list[str]) -> Counter[tuple[str, str]]:
    """How many imports there are by (room that imports, room of what is imported)."""

    def room(module: str) -> str:
        return next((part for part in module.split(".")[1:2] if part in names), "stdc_fast")

    return Counter((room(one.module), room(one.target)) for one in imports)


def table(counts: Counter[tuple[str, str]], names: list[str]) -> str:
    """A row for each room that imports and a column for each that is imported."""
    rows = [["", *names]]
    rows += [[name, *(str(counts[name, other] or ".") for other in names)] for name in names]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] *= -1  # to the left
    return "\n".join(
        "  ".join(f"{c:{'<>'[w > 0]}{abs(w)}}" for c, w in zip(row, widths, strict=True)) for row in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, default=ROOT, help="source tree to read")
    tree = parser.parse_args().tree
    imports, names = read(tree), rooms(tree)
    counts = between(imports, names)
    print(table(counts, names))
    others = sum(count for (one, other), count in counts.items() if one != other)
    print(f"\n{len(imports)} imports, {others} of them between rooms")
    for circle in circles(one for one in imports if not one.inside):
        print(f"circle at import: {', '.join(circle)}")
    for circle in circles(imports):
        print(f"circle, those inside functions counted: {', '.join(circle)}")


if __name__ == "__main__":
    main()
