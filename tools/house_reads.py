"""Reads by string key of a run's config and of a folder's meta, whatever the variable is called.

A config is what is named so (`config`, `run.config`, `settings`), what comes out of one
(`config['model']`, `dict(config)`, `config | {...}`), a name or attribute that one was assigned to,
and a parameter that takes a mapping and is given one somewhere; meta likewise, except that what
comes out of it is a value. A read is `x['key']`, `x[KEY]` or `x.get('key')`;
`config['log']['every']` is one. Not counted: foreign files that are called config too, the edge
where config dictionaries end (house.toml lists both), and class methods that return what `cls`
makes: in those a typed object reads its own file.
"""

import ast
import dataclasses

from house_tree import Function, House, Module, Place, functions, within

NAMES = {'config': 'config', 'settings': 'config', 'cfg': 'config', 'meta': 'meta'}
READERS = ('read_', 'load_', 'open_')  # of a function whose name ends in one of these
MAPPINGS = ('Mapping', 'dict', 'Any', 'ConfigDict')  # annotations of parameters that take one
COPIES = ('dict', 'vars')


@dataclasses.dataclass
class Known:
    """What is known to be a config or meta: names of a scope, attributes of a module."""

    names: dict[str, str]
    attributes: dict[str, str]


def kind(node: ast.AST, known: Known) -> str:
    """'config', 'meta', or '' for anything else."""
    match node:
        case ast.Name():
            return known.names.get(node.id, NAMES.get(node.id, ''))
        case ast.Attribute():
            inner = (
                kind(node.value, known) if isinstance(node.value, ast.Name | ast.Attribute) else ''
            )
            return known.attributes.get(node.attr, NAMES.get(node.attr, '')) or (
                inner if inner == 'config' else ''
            )
        case ast.Subscript():
            return 'config' if kind(node.value, known) == 'config' else ''
        case ast.Call(func=ast.Attribute(value=value, attr='get' | 'copy' | 'to_dict')):
            return 'config' if kind(value, known) == 'config' else ''
        case ast.Call():
            name = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, 'id', '')
            )
            if name in COPIES and node.args:
                return kind(node.args[0], known)
            return NAMES.get(name.rpartition('_')[2], '') if name.startswith(READERS) else ''
        case ast.BinOp(op=ast.BitOr()):
            return kind(node.left, known) or kind(node.right, known)
        case ast.IfExp():
            return kind(node.body, known) or kind(node.orelse, known)
        case ast.BoolOp():
            return next(filter(None, (kind(value, known) for value in node.values)), '')
        case ast.NamedExpr():
            return kind(node.value, known)
    return ''


def is_key(node: ast.AST) -> bool:
    """Whether an index is a text: written there, made there, or a constant's name."""
    if isinstance(node, ast.Attribute):
        return node.attr.isupper()
    if isinstance(node, ast.Name):
        return node.id.isupper()
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def read_of(node: ast.AST) -> ast.expr | None:
    """What is read by a text, None where nothing is."""
    match node:
        case ast.Subscript(value=value, slice=key, ctx=ast.Load()) if is_key(key):
            return value
        case ast.Call(func=ast.Attribute(value=value, attr='get'), args=[key, *_]) if is_key(key):
            return value
    return None


def assigned(node: ast.AST) -> list[tuple[ast.AST, ast.AST]]:
    """(target, value) of every name or attribute that a node gives a value."""
    match node:
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(
            targets
        ) == len(values):
            return list(zip(targets, values, strict=True))
        case ast.Assign():
            return [(target, node.value) for target in node.targets]
        case ast.AnnAssign(value=ast.expr()) | ast.NamedExpr():
            return [(node.target, node.value)]  # type: ignore[list-item]
    return []


def parameters(function: Function) -> list[ast.arg]:
    """All named parameters of a function, in order."""
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def takes_mapping(argument: ast.arg) -> bool:
    """Whether a parameter may be given a plain mapping."""
    text = ast.unparse(argument.annotation) if argument.annotation else 'Any'
    return any(name in text for name in MAPPINGS)


class Reads:
    """The reads of all modules of a package, by following configs until nothing is new."""

    def __init__(self, house: House, foreign: list[str], edge: list[str]):
        self.house, self.left_out = house, [*foreign, *edge]
        self.given: dict[
            str, dict[str, str]
        ] = {}  # kind of parameters, by full dotted path of the function
        self.attributes: dict[str, dict[str, str]] = {name: {} for name in house.package}
        before = None
        while before != (before := repr((self.given, self.attributes))):
            self.found: list[tuple[str, Place]] = []
            for name, module in house.package.items():
                if not within(name, self.left_out):
                    self.scope(
                        module, module.tree, Known({}, self.attributes[name]), f'sigma_jax.{name}'
                    )

    def scope(self, module: Module, tree: ast.AST, outer: Known, path: str) -> None:
        """Follows one scope, then those within it."""
        known, nodes, inner = Known(dict(outer.names), outer.attributes), [], []
        todo = list(ast.iter_child_nodes(tree))
        if isinstance(tree, Function):
            known.names |= {
                a.arg: '' for a in parameters(tree) if not takes_mapping(a)
            } | self.given.get(path, {})
        while todo:
            node = todo.pop(0)
            if isinstance(node, Function | ast.ClassDef):
                inner.append(node)
                continue
            nodes.append(node)
            todo += ast.iter_child_nodes(node)
        for target, value in (pair for _ in range(2) for node in nodes for pair in assigned(node)):
            if found := kind(value, known):
                if isinstance(target, ast.Name):
                    known.names[target.id] = found
                elif isinstance(target, ast.Attribute):
                    known.attributes[target.attr] = found
        for node in nodes:
            self.note(module, node, known)
        for node in inner:
            if not is_typed_reader(node):
                self.scope(module, node, known, f'{path}.{node.name}')

    def note(self, module: Module, node: ast.AST, known: Known) -> None:
        """Counts a node that is a read; passes on what a call is given."""
        value = read_of(node)
        found = kind(value, known) if value is not None and read_of(value) is None else ''
        if found and value is not None and not module.called(value):  # `jax.config` is a library's
            self.found.append((found, module.place(node, ast.unparse(node))))
        if isinstance(node, ast.Call) and (path := module.called(node.func)):
            for function, full in self.definitions(path):
                names = [a for a in parameters(function) if a.arg not in ('self', 'cls')]
                pairs = [*zip(names, node.args, strict=False)]
                pairs += [
                    (a, word.value) for word in node.keywords for a in names if a.arg == word.arg
                ]
                taken = {
                    a.arg: kind(x, known) for a, x in pairs if takes_mapping(a) and kind(x, known)
                }
                self.given.setdefault(full, {}).update(taken)

    def definitions(self, path: str) -> list[tuple[Function, str]]:
        """The function of ours that a path names, or the constructor of the class."""
        name = self.house.module(path)
        if (
            not name
            or not (rest := path.removeprefix(f'sigma_jax.{name}').removeprefix('.'))
            or '.' in rest
        ):
            return []
        for node in self.house.package[name].tree.body:
            if isinstance(node, Function) and node.name == rest:
                return [(node, path)]
            if isinstance(node, ast.ClassDef) and node.name == rest:
                return [(f, f'{path}.__init__') for f in functions(node) if f.name == '__init__']
        return []


def is_typed_reader(node: ast.AST) -> bool:
    """Whether a definition is a class method that returns what `cls` makes, and nothing else."""
    if not isinstance(node, Function) or 'classmethod' not in map(ast.unparse, node.decorator_list):
        return False
    given = [one.value for one in ast.walk(node) if isinstance(one, ast.Return)]
    return bool(given) and all(
        isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id == 'cls'
        for one in given
    )


def reads(house: House, foreign: list[str], edge: list[str]) -> dict[str, list[Place]]:
    """Reads of 'config' and of 'meta'."""
    found = sorted(Reads(house, foreign, edge).found, key=lambda one: (one[1].file, one[1].line))
    return {
        which: [place for kind, place in found if kind == which] for which in ('config', 'meta')
    }
