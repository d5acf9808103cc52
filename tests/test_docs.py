"""The documentation says what is true: every test that it names exists, every row of its tables is
whole.
"""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TABLES = (ROOT / 'docs' / 'formats.md').read_text()
ROWS = [
    line
    for line in TABLES.splitlines()
    if line.startswith('| ') and not line.startswith(('| input', '| version'))
]
NAMED = sorted(set(re.findall(r'`(tests/[\w/]+\.py)(?:::(\w+))?`', TABLES)))


def functions(file: pathlib.Path) -> set[str]:
    """Names of all functions in a file."""
    return {
        node.name
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize(('file', 'test'), NAMED)
def test_a_test_that_a_page_names_exists(file, test):
    assert (ROOT / file).is_file()
    assert not test or test in functions(ROOT / file)


def test_every_row_has_an_outcome_a_reason_and_a_test():
    assert ROWS
    for row in ROWS:
        cells = [cell.strip() for cell in row.strip().strip('|').split(' | ')]
        assert len(cells) == 4 and all(cells), row
        assert re.search(r'`tests/[\w/]+\.py(::\w+)?`', cells[-1]), row
