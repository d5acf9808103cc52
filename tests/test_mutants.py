"""The list of planted bugs stays alive while code moves, and the program that plants them says
found from missed.
"""

import collections
import json
import re
import subprocess
import sys

import pytest

from tests import golden

ROOT = golden.DATA.parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
import mutants  # noqa: E402

sys.path.pop(0)
ALL = mutants.read_mutants()


def test_every_bug_can_be_planted_and_names_tests_that_exist():
    """Its old text stands once in its file, and the file with the new text is still Python."""
    assert mutants.problems(ALL) == []
    for mutant in ALL:
        text = (ROOT / mutant.file).read_text()
        compile(text.replace(mutant.old, mutant.new), mutant.file, 'exec')


def test_bugs_of_every_part_are_there_and_few_are_left():
    parts = collections.Counter(mutant.file.rpartition('/')[0] for mutant in ALL)
    assert len(ALL) >= 45 and len(parts) >= 20
    assert sum(bool(mutant.left) for mutant in ALL) <= (1 - mutants.SHARE) * len(ALL)
    assert all(re.fullmatch(r'[a-z0-9-]+', mutant.name) for mutant in ALL)
    assert [m.name for m in ALL if '|' in m.breaks + m.left or not m.breaks] == [], (
        'they are cells of a table'
    )


def test_a_list_that_cannot_be_run_is_reported(tmp_path):
    (tmp_path / 'code.py').write_text('x = 1\ny = 1\n')
    (tmp_path / 'test_code.py').write_text('def test_x():\n    pass\n')

    def said(old='x = 1', new='x = 2', tests=('test_code.py::test_x',), file='code.py'):
        return mutants.problems([mutants.Mutant('m', file, old, new, 'x', tests)], tmp_path)

    assert said() == [] and said(tests=('test_code.py', 'test_code.py::test_x[a-1]')) == []
    for bad in (
        {'old': '= 1'},
        {'old': 'z'},
        {'new': 'x = 1'},
        {'file': 'none.py'},
        {'tests': ()},
        {'tests': ('test_code.py::test_y',)},
        {'tests': ('none.py',)},
    ):
        assert len(said(**bad)) == 1, bad
    one = mutants.Mutant('m', 'code.py', 'x = 1', 'x = 2', 'x', ('test_code.py',))
    assert mutants.problems([one, one], tmp_path) == ['m: expected one mutant of that name, got 2']


@pytest.mark.parametrize(
    ('answer', 'outcome'),
    [
        ({'code': 1, 'failed': 'test_a'}, 'found'),
        ({'code': 0}, 'missed'),
        ({'code': 5, 'ran': 0}, 'error'),  # nothing was selected
        ({'code': 0, 'ran': 0}, 'error'),
        ({'code': 2}, 'error'),  # a module that does not import: no bug that anyone would plant
        ({'code': 1, 'failed': 'test_a', 'foreign': ['sigma_jax.nn.layers']}, 'error'),
    ],
)
def test_what_a_run_says(tmp_path, answer, outcome):
    usual = {'code': 0, 'failed': '', 'why': '', 'ran': 3, 'foreign': []}
    (tmp_path / 'a.json').write_text(json.dumps(usual | answer))
    assert mutants.judge(tmp_path / 'a.json', 1.0).outcome == outcome
    assert mutants.judge(tmp_path / 'none.json', 1.0).outcome == 'error'


CODE = 'def double(x):\n    return 2 * x\n'
TEST = """from planted_code import double


def test_of_two():
    assert double(2) == 4


def test_of_one():
    assert double(1) == 2
"""
RUN = """
import pathlib, shutil, sys
sys.path.insert(0, sys.argv[1])
import mutants
folder, names = pathlib.Path(sys.argv[2]), ('test_of_one', 'test_of_two')
mutants.copy_tree = lambda place: shutil.copytree(folder, place)
def plant(name):
    tests = (f'test_planted.py::{name}',)
    return mutants.Mutant(name, 'planted_code.py', '2 * x', 'x ** 2', 'x', tests)
planted = [plant(name) for name in names]
found = mutants.run_all([(m.name, m.tests, m) for m in planted], 1, folder.parent)
print(mutants.table(planted, found))
"""


def test_a_bug_is_found_by_its_test_and_missed_by_another(tmp_path):
    """In a process of its own, whose children import what was edited; the edit is undone."""
    (tmp_path / 'tree').mkdir()
    (tmp_path / 'tree/planted_code.py').write_text(CODE)
    (tmp_path / 'tree/test_planted.py').write_text(TEST)
    command = [sys.executable, '-c', RUN, str(ROOT / 'tools'), str(tmp_path / 'tree')]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 4, done.stderr
    assert lines[2].startswith('| test_of_one | x | found | `test_planted.py::test_of_one` |')
    assert lines[3].startswith('| test_of_two | x | missed | test_planted.py::test_of_two |')
    assert (
        '1/2 test_of_one: found' in done.stderr
        and (tmp_path / 'copy0/planted_code.py').read_text() == CODE
    )
