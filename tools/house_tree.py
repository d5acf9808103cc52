"""The repository as syntax trees: its modules, what each imports, and what a call calls."""

import ast
import dataclasses
import functools
import pathlib
from collections.abc import Iterator

PACKAGE = 'sigma_jax'
DOOR = f'{PACKAGE}/__init__.py'
Function = ast.FunctionDef | ast.AsyncFunctionDef


def for_types(node: ast.stmt) -> bool:
    """Whether a statement is the block that only type checkers read."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING'


@dataclasses.dataclass(frozen=True)
class Place:
    """One thing counted: where it stands, and what it is."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f'{self.file}:{self.line}: {self.what}'


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
    """One file: dotted name (in the package without the package's), path from the root, text."""

    name: str
    file: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text, self.file)

    @functools.cached_property
    def imports(self) -> list[tuple[str, int]]:
        """(full dotted path of what is imported, line), for every import anywhere in it.

        What the package's front door imports for type checkers alone is left out.
        """
        found = []
        unread = [n for n in self.tree.body if self.file == DOOR and for_types(n)]
        left_out = {node for block in unread for node in ast.walk(block)}
        for node in (node for node in ast.walk(self.tree) if node not in left_out):
            if isinstance(node, ast.Import):
                found += [(alias.name, node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [(f'{node.module}.{alias.name}', node.lineno) for alias in node.names]
        return found

    @functools.cached_property
    def known(self) -> dict[str, str]:
        """Full dotted path of every name that it imports, or defines at its top."""
        found = {
            n.name: f'{PACKAGE}.{self.name}.{n.name}'
            for n in self.tree.body
            if isinstance(n, Function | ast.ClassDef)
        }
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {
                    a.asname or a.name.split('.')[0]: a.name if a.asname else a.name.split('.')[0]
                    for a in node.names
                }
            elif isinstance(node, ast.ImportFrom):
                found |= {
                    alias.asname or alias.name: f'{node.module}.{alias.name}'
                    for alias in node.names
                }
        return found

    def called(self, node: ast.expr) -> str:
        """Full dotted path of what an expression names, '' for what is neither import nor ours."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id, '')
        if isinstance(node, ast.Attribute) and (above := self.called(node.value)):
            return f'{above}.{node.attr}'
        return ''

    def place(self, node: ast.AST, what: str) -> Place:
        """A count at a node of its tree."""
        return Place(self.file, getattr(node, 'lineno', 1), what)


@dataclasses.dataclass(frozen=True)
class House:
    """A repository's Python files: those of the package by name, of its tests, the others."""

    root: pathlib.Path
    package: dict[str, Module]
    tests: list[Module]
    others: list[Module]

    @property
    def everything(self) -> list[Module]:
        """Every module."""
        return [*self.package.values(), *self.tests, *self.others]

    def module(self, path: str) -> str:
        """The module of the package that a full dotted path leads to, '' for none of ours."""
        if path != PACKAGE and not path.startswith(f'{PACKAGE}.'):
            return ''
        inner = path.removeprefix(PACKAGE).removeprefix('.')
        while inner and inner not in self.package:
            inner = inner.rpartition('.')[0]
        return inner or '__init__'


def read(root: pathlib.Path) -> House:
    """The repository at `root`; folders that are hidden, or environments, are no part of it."""
    house = House(root, {}, [], [])
    for path in files(root):
        inside = path.relative_to(root)
        name = '.'.join(inside.with_suffix('').parts).removesuffix('.__init__')
        module = Module(name.removeprefix(f'{PACKAGE}.'), inside.as_posix(), path.read_text())
        if inside.parts[0] == PACKAGE:
            name = module.name if name != PACKAGE else '__init__'
            house.package[name] = dataclasses.replace(module, name=name)
        else:
            (house.tests if inside.parts[0] == 'tests' else house.others).append(module)
    return house


def files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Its Python files, in order."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith('.') and not (path / 'pyvenv.cfg').exists():
            yield from files(path)
        elif path.suffix == '.py':
            yield path


def within(name: str, places: tuple[str, ...] | list[str]) -> bool:
    """Whether a module is one of `places` or lies in one of them."""
    return any(name == place or name.startswith(f'{place}.') for place in places)


def ends_as(path: str, name: str) -> bool:
    """Whether a dotted path ends as a name does, part by part."""
    return path == name or path.endswith(f'.{name}')


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function, methods and inner ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def definitions(house: House) -> Iterator[tuple[Module, Function | ast.ClassDef]]:
    """Every function and class at the top of a module."""
    for module in house.package.values():
        yield from (
            (module, node) for node in module.tree.body if isinstance(node, Function | ast.ClassDef)
        )
