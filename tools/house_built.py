"""What should stand in one place: asking for the objective, assembling a run, opening a base."""

import ast
import re
from collections.abc import Iterable, Iterator

from house_tree import House, Module, Place, definitions, ends_as, within


def objective_names(house: House, edge: list[str]) -> list[Place]:
    """Comparisons of the objective's name with a text, with texts that are written there or have a
    constant's name, cases of a match, lookups by it.

    It is what is called `objective` (a name, an attribute, a key), or was assigned from such.
    """
    found = []
    for name, module in house.package.items():
        if within(name, edge):
            continue
        named = {'objective'}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Assign) and is_objective(node.value, named):
                named |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        for node in ast.walk(module.tree):
            found += [module.place(where, ast.unparse(where)) for where in asked(node, named)]
    return found


def is_objective(node: ast.AST, named: set[str]) -> bool:
    """Whether an expression gives the objective's name."""
    match node:
        case ast.Name(id=name):
            return name in named
        case ast.Attribute(attr='objective') | ast.Subscript(slice=ast.Constant(value='objective')):
            return True
        case ast.Call(func=ast.Attribute(attr='get'), args=[ast.Constant(value='objective'), *_]):
            return True
    return False


def asked(node: ast.AST, named: set[str]) -> list[ast.AST]:
    """The node, where it asks which objective it is; for a match, its cases."""

    def text(one: ast.AST) -> bool:
        inner = one.elts if isinstance(one, ast.Tuple | ast.List | ast.Set) else [one]
        inner = [x.value if isinstance(x, ast.Starred) else x for x in inner]
        return all(
            is_constant(x) or (isinstance(x, ast.Constant) and isinstance(x.value, str))
            for x in inner
        )

    match node:
        case ast.Compare(left=left, comparators=others):
            sides = [left, *others]
            constant = any(
                isinstance(side, ast.Constant) and side.value == 'flow_matching' for side in sides
            )
            return (
                [node]
                if constant
                or (any(is_objective(s, named) for s in sides) and any(map(text, sides)))
                else []
            )
        case ast.Match(subject=subject, cases=cases) if is_objective(subject, named):
            return [
                case.pattern
                for case in cases
                if isinstance(case.pattern, ast.MatchValue | ast.MatchOr)
            ]
        case ast.Subscript(slice=key, ctx=ast.Load()) if is_objective(key, named):
            return [node]
    return []


def is_constant(node: ast.AST) -> bool:
    """Whether an expression is a name in capitals, its own or another module's."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.isupper()
    return False


def calls_of(
    house: House, module: Module, tree: ast.AST, names: Iterable[str]
) -> Iterator[tuple[ast.Call, str, str]]:
    """(call, name, path) of calls of some functions or classes of ours, or with one as first."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for given in (node.func, *node.args[:1]):
                path = module.called(given)
                if house.module(path):
                    yield from ((node, name, path) for name in names if ends_as(path, name))


def unknown(house: House, names: Iterable[str]) -> list[str]:
    """Names, some with their module's, under which nothing is defined."""
    there = [f'{module.name}.{node.name}' for module, node in definitions(house)]
    return [name for name in names if not any(ends_as(path, name) for path in there)]


def is_one_of(path: str, names: Iterable[str]) -> bool:
    """Whether a dotted path ends as one of some names."""
    return any(ends_as(path, name) for name in names)


def assemblies(house: House, made: list[str], policies: list[str], edge: list[str]) -> list[Place]:
    """Modules that make what a run consists of, each once.

    That is `made`, unless within another of them, or at the edge, where settings are read; and
    `policies`, which open a base to sample it, unless in the module that defines them.
    """
    found: dict[str, Place] = {}
    for module, node in definitions(house):
        if within(module.name, edge) or is_one_of(f'{module.name}.{node.name}', made):
            continue
        for call, name, path in calls_of(house, module, node, [*made, *policies]):
            if name in made or house.module(path) != module.name:
                found.setdefault(module.name, module.place(call, ast.unparse(call.func) + '()'))
    return list(found.values())


def doors(house: House, opened: list[str], gives: list[str], made: list[str]) -> list[Place]:
    """Public functions that call one of `opened`, or another door, and return one of `gives`.

    Whether the weights are read at once or later makes no difference. A class that opens a base is
    a door too, unless it goes on to make a run of it.
    """
    known = set(opened)
    places: dict[str, Place] = {}
    before = -1
    while before != (before := len(places)):
        for module, node in definitions(house):
            path = f'{module.name}.{node.name}'
            hidden = node.name.startswith('_') or is_one_of(path, opened)
            if hidden or not any(calls_of(house, module, node, known)):
                continue
            if isinstance(node, ast.ClassDef):
                is_door = not any(calls_of(house, module, node, made))
            else:
                words = re.findall(r'\w+', ast.unparse(node.returns)) if node.returns else []
                is_door = any(one in words for one in gives)
            if is_door:
                known.add(path)
                places[path] = module.place(node, f'{node.name} opens a base')
    return list(places.values())
