"""Instructions of v3.0: whatever pandas called the index of the frame, its text is the task."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigma_jax.data.lerobot.tasks import read_tasks
from sigma_jax.errors import UserError

TEXTS = ['lift the brick', 'push it away', 'wave']
WANT = dict(enumerate(TEXTS))
COUNTING = {'kind': 'range', 'name': None, 'start': 0, 'stop': 3, 'step': 1}


def tasks_file(root: Path, columns: dict[str, Any], index: list | None = None) -> Path:
    """meta/tasks.parquet with columns in this order; `index` is what pandas says of the frame's
    index.
    """
    table = pa.table(columns)
    if index is not None:
        table = table.replace_schema_metadata(
            {'pandas': json.dumps({'index_columns': index, 'columns': []})}
        )
    (root / 'meta').mkdir()
    pq.write_table(table, root / 'meta/tasks.parquet')
    return root


@pytest.mark.parametrize(
    ('columns', 'index'),
    [
        ({'task_index': [0, 1, 2], 'task': TEXTS}, ['task']),
        ({'task': TEXTS, 'task_index': [0, 1, 2]}, ['task']),
        ({'task_index': [0, 1, 2], '__index_level_0__': TEXTS}, ['__index_level_0__']),
        ({'task_index': [0, 1, 2], 'instruction': TEXTS}, ['instruction']),
        (
            {'language_instruction': pa.array(TEXTS, pa.large_string()), 'task_index': [0, 1, 2]},
            None,
        ),
        ({'task_index': [0, 1, 2], 'task': TEXTS}, [COUNTING]),
        ({'task_index': [0, 1, 2], 'text': pa.array(TEXTS).dictionary_encode()}, [COUNTING]),
        ({'task': TEXTS, 'task_index': [0, 1, 2]}, ['task_index']),
        (
            {
                'task_index': pa.array([2, 0, 1], pa.int32()),
                'name': [TEXTS[2], *TEXTS[:2]],
                'n': [5, 6, 7],
            },
            ['name'],
        ),
        ({'task_index': [0, 1, 2], 'task': ['short'] * 3, 'long': TEXTS}, ['long']),
        ({'task_index': [0, 1, 2], 'task': TEXTS, 'robot': ['a', 'b', 'c']}, None),
        (
            {'task_index': [0, 1, 2], '__index_level_0__': [9, 8, 7], 'task': TEXTS},
            ['__index_level_0__'],
        ),
    ],
)
def test_the_text_is_found(tmp_path, columns, index):
    assert read_tasks(tasks_file(tmp_path, columns, index), 'v3.0') == WANT


@pytest.mark.parametrize('names', [('category', 'prompt'), ('a', 'b', 'c')])
def test_two_texts_of_unknown_names_are_ambiguous(tmp_path, names):
    root = tasks_file(tmp_path, {'task_index': [0, 1, 2], **dict.fromkeys(names, TEXTS)})
    with pytest.raises(
        UserError, match="may be the instruction, rename the one that is it to 'task'"
    ) as caught:
        read_tasks(root, 'v3.0')
    assert f'any of the texts {list(names)} may' in str(caught.value)


@pytest.mark.parametrize(
    'metadata', [b'', b'{"index_columns": 3}', b'[]', b'\xff', b'{"index_columns": [["a"]]}']
)
def test_metadata_that_say_nothing_do_no_harm(tmp_path, metadata):
    root = tasks_file(tmp_path, {'task_index': [0, 1, 2], 'task': TEXTS})
    table = pq.read_table(root / 'meta/tasks.parquet').replace_schema_metadata(
        {b'pandas': metadata}
    )
    pq.write_table(table, root / 'meta/tasks.parquet')
    assert read_tasks(root, 'v3.0') == WANT


@pytest.mark.parametrize(
    ('columns', 'index', 'got'),
    [
        (
            {'task_index': [0, 1, 2], 'one': TEXTS, 'two': TEXTS},
            [COUNTING],
            "got .'task_index', 'one', 'two'.; fetch",
        ),
        ({'task_index': [0, 1, 2], 'n': [4, 5, 6]}, ['n'], "got .'task_index', 'n'.; fetch"),
        ({'task': TEXTS}, ['task'], "got .'task'.; fetch"),
        ({'task_index': [0, 1, 1], 'x': TEXTS}, ['x'], 'one of them twice'),
        ({'task_index': [0, 1, 2], 'x': ['a', None, 'b']}, ['x'], 'got None'),
        ({'task_index': [0.0, 1.0, 2.0], 'x': TEXTS}, ['x'], 'expected a whole number'),
    ],
)
def test_what_names_no_text_is_reported(tmp_path, columns, index, got):
    with pytest.raises(UserError, match=got):
        read_tasks(tasks_file(tmp_path, columns, index), 'v3.0')


LEROBOT = """
import json, pathlib, sys
import pandas as pd
from lerobot.datasets.io_utils import load_tasks, write_tasks
root = pathlib.Path(sys.argv[1])
for name in json.loads(sys.argv[2]):
    tasks = pd.Index(json.loads(sys.argv[3]), name=name)
    frame = pd.DataFrame({'task_index': [0, 1, 2]}, index=tasks)
    write_tasks(frame, root / str(name))
    back = load_tasks(root / str(name))
    print(json.dumps({str(row.task_index): str(text) for text, row in back.iterrows()}))
"""


@pytest.mark.reference
def test_frames_that_lerobot_writes_are_read_as_lerobot_reads_them(tmp_path):
    """LeRobot 0.6.1 and pandas, in the Python that REFERENCE_LEROBOT names."""
    python = os.environ.get('REFERENCE_LEROBOT')
    assert python, 'set REFERENCE_LEROBOT to a Python that has lerobot 0.6.1'
    names = ['task', None, 'instruction', 'task_name', 'index']
    arguments = [str(tmp_path), json.dumps(names), json.dumps(TEXTS)]
    done = subprocess.run(
        [python, '-c', LEROBOT, *arguments], check=True, capture_output=True, text=True
    )
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        theirs = {int(number): text for number, text in json.loads(line).items()}
        assert read_tasks(tmp_path / str(name), 'v3.0') == theirs == WANT, name
