"""The map, the sizes and the imports: each function gives the places where something is."""

import ast
import dataclasses
import itertools
from collections.abc import Iterator

from house_tree import Function, House, Module, Place, definitions, functions, within

# --- the map


def first_level(house: House) -> list[Place]:
    """Modules (`__init__` too) and folders with modules at the package's first level."""
    first = {module.file.split('/')[1] for module in house.package.values()}
    return [
        Place(f'sigma_jax/{name}', 1, 'module' if name.endswith('.py') else 'folder')
        for name in sorted(first)
    ]


def rows(text: str) -> list[tuple[str, ...]]:
    """ROWS of the architecture's test: a module imports from its own row and rows before it."""
    for node in ast.parse(text).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, 'target', None)
        if (
            isinstance(target, ast.Name)
            and target.id == 'ROWS'
            and isinstance(node, ast.Assign | ast.AnnAssign)
        ):
            assert node.value is not None
            return list(ast.literal_eval(node.value))
    raise SystemExit(
        'expected ROWS = (...) in tests/test_architecture.py, got none; write them as plain tuples'
    )


def arrows(house: House) -> Iterator[tuple[str, str, Place]]:
    """(module, another module of ours that it imports, where)."""
    for name, module in house.package.items():
        for path, line in module.imports:
            if (other := house.module(path)) not in ('', name):
                yield name, other, Place(module.file, line, f'imports {other}')


def back_arrows(house: House, order: list[tuple[str, ...]]) -> list[Place]:
    """Imports of a module in a later row, modules in no row, and rooms that reach each other.

    A room is what stands at the package's first level. Of rooms that reach each other some arrow
    points back, whatever their order; each such group counts once.
    """

    def row(name: str) -> int | None:
        return next((n for n, places in enumerate(order) if within(name, places)), None)

    lost = [
        Place(module.file, 1, 'is in no row')
        for name, module in house.package.items()
        if row(name) is None
    ]
    known = [(row(one), row(other), place) for one, other, place in arrows(house)]
    late = [
        place
        for one, other, place in known
        if one is not None and other is not None and other > one
    ]
    return lost + late + rooms_in_circles(house)


def rooms_in_circles(house: House) -> list[Place]:
    """Groups of rooms that reach each other, each at one of its arrows."""
    graph: dict[str, set[str]] = {}
    where: dict[str, Place] = {}
    for one, other, place in arrows(house):
        room, next_room = one.partition('.')[0], other.partition('.')[0]
        if room != next_room and next_room != '__init__':
            graph.setdefault(room, set()).add(next_room)
            where[room] = place
    ways = {room: reached(graph, room) for room in graph}
    groups = {
        tuple(sorted(other for other in ways[room] if room in ways.get(other, ())))
        for room in graph
    }
    return [
        dataclasses.replace(where[group[0]], what=f'circle of {", ".join(group)}')
        for group in groups
        if group
    ]


def circles(house: House) -> list[Place]:
    """Modules that reach themselves; importing the package itself (its version) leads nowhere."""
    graph: dict[str, set[str]] = {}
    for one, other, _ in arrows(house):
        if other != '__init__':
            graph.setdefault(one, set()).add(other)
    return [
        Place(house.package[name].file, 1, 'reaches itself')
        for name in graph
        if name in reached(graph, name)
    ]


def reached(graph: dict[str, set[str]], start: str) -> set[str]:
    """All that some arrows lead to from a start."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        new = graph.get(todo.pop(), set()) - seen
        seen |= new
        todo += new
    return seen


# --- sizes


def public_functions(house: House) -> Iterator[tuple[Module, Function, bool]]:
    """(module, function, whether it is a method) of modules and their public classes."""
    for module, node in definitions(house):
        public = not node.name.startswith('_')
        if isinstance(node, ast.ClassDef) and public:
            methods = [one for one in node.body if isinstance(one, Function)]
            special = ('__init__', '__call__')
            yield from (
                (module, f, True)
                for f in methods
                if not f.name.startswith('_') or f.name in special
            )
        elif isinstance(node, Function) and public:
            yield module, node, False


def positional(house: House) -> list[tuple[int, Place]]:
    """Parameters of public functions that may be given by position, without self, most first."""
    found = []
    for module, node, method in public_functions(house):
        static = any(ast.unparse(mark) == 'staticmethod' for mark in node.decorator_list)
        count = len(node.args.posonlyargs) + len(node.args.args) - (method and not static)
        found.append((count, module.place(node, f'{node.name} takes {count} by position')))
    return sorted(found, key=lambda one: -one[0])


def lengths(house: House) -> list[tuple[int, Place]]:
    """Lines of the functions of package and scripts from `def` to the end, longest first.

    A docstring does not count: what it says of arguments makes no function harder to read.
    """
    modules = [
        *house.package.values(),
        *(module for module in house.others if '/' not in module.file),
    ]
    found = []
    for module in modules:
        for node in functions(module.tree):
            count = span(node) - (span(node.body[0]) if ast.get_docstring(node) else 0)
            found.append((count, module.place(node, f'{node.name} has {count} lines')))
    return sorted(found, key=lambda one: -one[0])


def span(node: ast.stmt) -> int:
    """Lines from a statement's first to its last."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def mocks(house: House) -> list[Place]:
    """Imports of `unittest.mock` outside tests."""
    modules = itertools.chain(house.package.values(), house.others)
    return [
        Place(module.file, line, f'imports {path}')
        for module in modules
        for path, line in module.imports
        if path == 'unittest' or within(path, ['unittest.mock'])
    ]


def pi05_parts(house: House, modules: list[str], names: list[str]) -> list[Place]:
    """Modules outside backbones/ that import one of some modules or names, each once."""
    found: dict[str, Place] = {}
    for name, module in house.package.items():
        for path, line in module.imports:
            if not (ours := house.module(path)) or within(name, ['backbones']):
                continue
            if within(ours, modules) or path.rpartition('.')[2] in names:
                found.setdefault(name, Place(module.file, line, f'imports {path}'))
    return list(found.values())


def wide_lines(house: House, width: int = 100) -> list[Place]:
    """Lines of more than `width` columns, anywhere."""
    return [
        Place(module.file, number, f'{len(line)} columns')
        for module in house.everything
        for number, line in enumerate(module.text.splitlines(), start=1)
        if len(line) > width
    ]


def test_lines(house: House) -> tuple[int, int]:
    """Lines of the tests, and of the package."""
    tests, package = house.tests, house.package.values()
    return sum(m.text.count('\n') for m in tests), sum(m.text.count('\n') for m in package)
