"""The notebooks in examples/ can be read, name what exists, and run from top to bottom."""

import ast
import base64
import io
import json
import re
import sys

import nbformat
import numpy as np
import pytest
from PIL import Image

import sigma_jax as sj
from tests import golden

ROOT = golden.DATA.parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
import notebooks as tool  # noqa: E402

sys.path.pop(0)
NOTEBOOKS = sorted(tool.EXAMPLES.glob('*.ipynb'))
every = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
KEPT = 400_000  # bytes of a notebook with its pictures


def sources(path, kind: str) -> list[str]:
    """The text of the cells of a kind, in order."""
    cells = tool.read(path)['cells']
    return [''.join(cell['source']) for cell in cells if cell['cell_type'] == kind]


def test_there_is_one():
    assert 'lerobot_to_policy' in [path.stem for path in NOTEBOOKS]


@every
def test_it_is_a_notebook(path):
    found = tool.read(path)
    nbformat.validate(found)
    kinds = {cell['cell_type'] for cell in found['cells']}
    assert found['nbformat'] == 4 and kinds == {'code', 'markdown'}


@every
def test_every_name_of_ours_exists(path):
    code = ast.parse('\n'.join(sources(path, 'code')))
    named = [
        node.attr
        for node in ast.walk(code)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == 'sj'
    ]
    assert len(named) > 5
    assert [name for name in named if name not in sj.__all__] == []


@every
def test_a_file_that_it_links_to_exists(path):
    links = re.findall(r'\]\(([^)]+)\)', '\n'.join(sources(path, 'markdown')))
    assert links
    assert [link for link in links if not (path.parent / link).is_file()] == []


@every
def test_its_outputs_are_of_one_run_are_small_and_name_no_machine(path):
    cells = [cell for cell in tool.read(path)['cells'] if cell['cell_type'] == 'code']
    assert [cell['execution_count'] for cell in cells] == list(range(1, len(cells) + 1))
    texts = [
        ''.join(value)
        for cell in cells
        for output in cell['outputs']
        for value in (output.get('text', []), *output.get('data', {}).values())
    ]
    absolute = re.compile(r'(?<![\w.])/(home|root|tmp|work|usr|var|mnt|opt|Users)/|\w:\\')
    assert texts and [text for text in texts if absolute.search(text)] == []
    assert path.stat().st_size < KEPT


def test_a_page_of_the_site_shows_what_a_notebook_does():
    code = {'cell_type': 'code', 'id': 'sum', 'source': ['x = 1\n', 'x'], 'outputs': []}
    text = {'cell_type': 'markdown', 'id': 'head', 'source': ['# A [b](../docs/b.md)']}
    printed = {'output_type': 'stream', 'name': 'stdout', 'text': ['one\n']}
    drawn = {'output_type': 'display_data', 'data': {'image/png': 'iVBORw=='}}
    code['outputs'] = [printed, drawn]
    page, pictures = tool.page({'cells': [text, code]}, 'place')
    assert page == (
        '# A [b](../b.md)\n\n```python\nx = 1\nx\n```\n\n```text\none\n```\n\n'
        '![sum](place/sum.png)\n'
    )
    assert pictures == {'sum.png': b'\x89PNG'}


def test_of_outputs_only_results_are_kept_and_pictures_are_small():
    png = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(png, 'png')
    drawn = {'text/plain': '<Figure>', 'image/png': base64.b64encode(png.getvalue()).decode()}
    outputs = [
        {'output_type': 'stream', 'name': 'stderr', 'text': ['a warning']},
        {'output_type': 'display_data', 'data': {'text/plain': 'a progress bar'}},
        {'output_type': 'display_data', 'data': drawn, 'metadata': {}},
        {'output_type': 'execute_result', 'data': {'text/plain': '3'}},
    ]
    cell = {'cell_type': 'code', 'outputs': outputs}
    tidied = tool.tidy({'cells': [cell], 'metadata': {'kernelspec': {'name': 'python3'}}})
    picture, result = tidied['cells'][0]['outputs']
    assert result['data'] == {'text/plain': '3'} and list(picture['data']) == ['image/png']
    small = base64.b64decode(picture['data']['image/png'])
    assert len(small) < len(png.getvalue()) and Image.open(io.BytesIO(small)).size == (40, 40)


@pytest.mark.slow
@every
def test_it_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    """As for a reader, whose XLA optimises: Sigma ends below its base's error, and the report is
    written.
    """
    monkeypatch.delenv('XLA_FLAGS', raising=False)
    pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    done = tool.execute(path, str(tmp_path / 'run'))
    assert all(cell.get('execution_count') for cell in done['cells'] if 'outputs' in cell)
    report = json.loads((tmp_path / 'run' / 'sigma' / 'sigma_eval_report.json').read_text())
    assert report['splits']['test']['arms']['sigma']['mse_trj']['change']['high'] < 0
    assert (tmp_path / 'run' / 'sigma' / 'report.html').is_file()
