"""The documentation says what is true: what a page names exists, every row of its tables is whole.

The code cites sections of `docs/design.md`; each of them must be there.
"""

import ast
import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob('docs/**/*.md'), ROOT / 'README.md', ROOT / 'CONTRIBUTING.md'])
FOLDERS = [
    'assets',
    'benchmarks',
    'clients',
    'configs',
    'docs',
    'examples',
    'experiments',
    'findings',
]
FOLDERS += ['results', 'sigma_jax', 'tests', 'tools']
SOURCES = [
    file
    for pattern in ('*.py', '*.toml', '*.md', 'setup.cfg')
    for folder in (ROOT, *(ROOT / name for name in FOLDERS))
    for file in (folder.glob(pattern) if folder == ROOT else folder.rglob(pattern))
    if file != pathlib.Path(__file__)
]
PATH = re.compile(rf'`((?:{"|".join(FOLDERS)})/[\w./-]*\w/?)(?:::\w+)?`')
CITATION = re.compile(r'docs/design\.md, ("[^"]+"(?:(?:, | and )"[^"]+")*)')
TABLES = (ROOT / 'docs' / 'formats.md').read_text()
ROWS = [
    line
    for line in TABLES.splitlines()
    if line.startswith('| ') and not line.startswith(('| input', '| version'))
]
DESCRIBED = [  # by the API pages of the site: modules, and what is in them
    name
    for file in sorted((ROOT / 'docs' / 'api').glob('*.md'))
    for name in re.findall(r'^::: ([\w.]+)', file.read_text(), re.MULTILINE)
]
NAMED = sorted(set(re.findall(r'`(tests/[\w/]+\.py)(?:::(\w+))?`', TABLES)))


def functions(file: pathlib.Path) -> set[str]:
    """Names of all functions in a file."""
    tree = ast.walk(ast.parse(file.read_text()))
    return {node.name for node in tree if isinstance(node, ast.FunctionDef)}


def sections() -> set[str]:
    """Headings of the design."""
    text = (ROOT / 'docs' / 'design.md').read_text()
    return set(re.findall(r'^##+ (.+)$', text, re.MULTILINE))


def citations(text: str) -> list[str]:
    """Sections of the design that a file names, also where a citation is broken over two lines."""
    flat = re.sub(r'\s+(?:# )?', ' ', text)
    return [name for found in CITATION.findall(flat) for name in re.findall(r'"([^"]+)"', found)]


def test_a_citation_is_found_over_two_lines():
    assert citations('# x (docs/design.md, "The\n    # sequence")') == ['The sequence']
    assert citations('docs/design.md, "Losses" and "LoRA"; "not this"') == ['Losses', 'LoRA']


def test_every_cited_section_of_the_design_exists():
    cited = {(file.name, name) for file in SOURCES for name in citations(file.read_text())}
    known = sections()
    assert len(cited) > 20
    assert {(file, name) for file, name in cited if name not in known} == set()


def test_no_file_cites_a_section_by_number():
    number = re.compile(r'DESIGN\s+(?:# )?\d')
    assert [file for file in SOURCES if number.search(file.read_text())] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_path_that_a_page_names_exists(page):
    named = set(PATH.findall(page.read_text()))
    assert {path for path in named if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize('name', DESCRIBED)
def test_what_a_page_of_the_api_describes_exists(name):
    module, _, inner = name.rpartition('.')
    assert hasattr(importlib.import_module(module), inner) or importlib.util.find_spec(name)


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
