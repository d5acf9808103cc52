"""The examples in docstrings run and give what they say; each imports what it uses."""

import ast
import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def examples(file: pathlib.Path) -> list[doctest.DocTest]:
    """One test for each docstring of a file with examples, at the line that it starts in."""
    parser, found = doctest.DocTestParser(), []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, DOCUMENTED) and '>>>' in (text := ast.get_docstring(node) or ''):
            where, name = file.relative_to(ROOT), getattr(node, 'name', file.stem)
            line = node.body[0].lineno - 1
            names = {'__name__': '__main__'}
            found.append(parser.get_doctest(text, names, f'{where}:{name}', str(where), line))
    return found


FILES = [file for file in sorted(ROOT.glob('sigma_jax/**/*.py')) if '>>>' in file.read_text()]
TESTS = [test for file in FILES for test in examples(file)]


@pytest.mark.parametrize('test', TESTS, ids=lambda test: test.name)
def test_an_example_gives_what_it_says(test, tmp_path, monkeypatch):
    for folder in ('assets', 'tests'):  # examples name what is embedded, and write beside it
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    assert runner.run(test, out=said.append).failed == 0, ''.join(said)


def test_every_example_of_a_file_is_found():
    """Also those in docstrings that a decorator hides from `doctest` itself."""
    assert FILES
    for file in FILES:
        lines = [line for line in file.read_text().splitlines() if line.strip().startswith('>>> ')]
        assert len(lines) == sum(len(test.examples) for test in examples(file)), file


def test_an_example_that_fails_is_reported():
    wrong = doctest.DocTestParser().get_doctest('>>> 1 + 1\n3\n', {}, 'wrong', 'wrong.py', 0)
    said: list[str] = []
    failed = doctest.DocTestRunner(optionflags=FLAGS).run(wrong, out=said.append).failed
    assert failed == 1 and 'Expected:\n    3' in ''.join(said)


def test_examples_are_imported_from_this_repository():
    package = importlib.import_module('sigma_jax')
    assert pathlib.Path(package.__file__ or '').parents[1] == ROOT
