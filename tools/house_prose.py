"""Docstrings: public functions that say nothing about a parameter, about what they return, or about
an error they raise.
"""

import ast
import re
from collections.abc import Iterator

from house_counts import public_functions
from house_tree import Function, House, Module, Place

SECTION = re.compile(r'^(\w[\w ]*):$')
ENTRY = re.compile(r'^  (\*{0,2}\w+):')


def undescribed(house: House) -> list[Place]:
    """Public functions whose `Args` do not name their parameters, all of them and no others.

    What a class says of its construction may stand in its own docstring.
    """
    return [
        module.place(node, f'{node.name}: {", ".join(sorted(missing))}')
        for module, node, docs in documented(house)
        if (missing := parameters(node) ^ entries(docs, 'Args'))
    ]


def unraised(house: House) -> list[Place]:
    """Public functions that raise a UserError themselves and have no `Raises` that says so."""
    return [
        module.place(node, f'{node.name} raises UserError')
        for module, node, docs in documented(house)
        if raises(node) and 'UserError' not in entries(docs, 'Raises')
    ]


def unreturned(house: House) -> list[Place]:
    """Public functions of something that return something and have neither `Returns` nor `Yields`.

    One that takes nothing may say in its first line what it gives.
    """
    return [
        module.place(node, f'{node.name} returns {ast.unparse(node.returns)}')
        for module, node, docs in documented(house)
        if node.returns and gives(node) and parameters(node)
        if not sections(docs) & {'Returns', 'Yields'}
    ]


def gives(node: Function) -> bool:
    """Whether a function returns something, or its context gives something to a `with`."""
    if node.name == '__init__' or node.returns is None:
        return False
    own = ast.unparse(node.returns)
    context = any(ast.unparse(m).endswith('contextmanager') for m in node.decorator_list)
    return own not in ('None', 'NoReturn') and not (context and own == 'Iterator[None]')


def documented(house: House) -> Iterator[tuple[Module, Function, list[str]]]:
    """(module, public function, its docstring), `__init__` with its class's docstring before."""
    for module, node, method in public_functions(house):
        docs = [ast.get_docstring(node) or '']
        if method and node.name == '__init__':
            docs.insert(0, ast.get_docstring(owner(module, node)) or '')
        yield module, node, docs


def owner(module: Module, method: Function) -> ast.ClassDef:
    """The class at the top of a module that a method belongs to."""
    classes = (node for node in module.tree.body if isinstance(node, ast.ClassDef))
    return next(node for node in classes if method in node.body)


def parameters(node: Function) -> set[str]:
    """Names of a function's parameters, with their stars, without self and those that say _."""
    given = node.args
    names = {one.arg for one in [*given.posonlyargs, *given.args, *given.kwonlyargs]}
    names |= {f'*{given.vararg.arg}'} if given.vararg else set()
    names |= {f'**{given.kwarg.arg}'} if given.kwarg else set()
    return {name for name in names - {'self', 'cls'} if not name.lstrip('*').startswith('_')}


def sections(docs: list[str]) -> set[str]:
    """Headings of some docstrings."""
    return {
        found[1] for text in docs for line in text.splitlines() if (found := SECTION.match(line))
    }


def entries(docs: list[str], section: str) -> set[str]:
    """Names that a section of some docstrings describes."""
    found = set()
    for text in docs:
        current = ''
        for line in text.splitlines():
            if heading := SECTION.match(line):
                current = heading[1]
            elif current == section and (entry := ENTRY.match(line)):
                found.add(entry[1])
    return found


def raises(node: Function) -> bool:
    """Whether a function raises UserError in its own body, not in a function within it."""
    todo: list[ast.AST] = list(node.body)
    while todo:
        one = todo.pop()
        if isinstance(one, ast.Raise) and one.exc is not None:
            made = one.exc.func if isinstance(one.exc, ast.Call) else one.exc
            if ast.unparse(made).rpartition('.')[2] == 'UserError':
                return True
        if not isinstance(one, Function | ast.ClassDef | ast.Lambda):
            todo += ast.iter_child_nodes(one)
    return False
