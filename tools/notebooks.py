"""The notebooks in examples/: executed from top to bottom, and turned into pages of the site.

    python tools/notebooks.py       executes each in runs/notebook and keeps its outputs in the file

What is kept is small and says nothing of a machine: printed lines, tables and pictures; what
libraries write to stderr is not. Executing needs nbclient and ipykernel (the extra `test`).
"""

import base64
import io
import json
import os
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / 'examples'
RUN = 'runs/notebook'  # as the notebooks spell it
COLOURS = 96  # of a picture that is kept: a third of its bytes
SECONDS = 900  # for one cell, on a busy machine

Notebook = dict[str, Any]


def read(path: pathlib.Path) -> Notebook:
    """A notebook as it is on disk."""
    return json.loads(path.read_text())


def execute(path: pathlib.Path, run: str = RUN) -> Notebook:
    """Executes every cell in a new kernel, as Jupyter does, and tidies what came out.

    Args:
      path: the notebook.
      run: the folder that takes the place of `RUN`.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raises.
    """
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    sources = [cell.source for cell in notebook.cells]
    for cell in notebook.cells:
        cell.source = cell.source.replace(f"'{RUN}'", f'{run!r}')
    client = nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        record_timing=False,
        resources={'metadata': {'path': str(path.parent)}},
    )
    client.execute(env={**os.environ, 'PYTHONPATH': str(ROOT)})
    for cell, source in zip(notebook.cells, sources, strict=True):
        cell.source = source
    return tidy(json.loads(nbformat.writes(notebook)))


def tidy(notebook: Notebook) -> Notebook:
    """The notebook with the outputs that are worth keeping, in their shortest form."""
    for cell in notebook['cells']:
        if cell['cell_type'] == 'code':
            cell['outputs'] = [kept for output in cell['outputs'] if (kept := _kept(output))]
    notebook['metadata'] = {
        'kernelspec': notebook['metadata']['kernelspec'],
        'language_info': {'name': 'python'},
    }
    return notebook


def _kept(output: Mapping[str, Any]) -> dict[str, Any] | None:
    if output['output_type'] == 'stream':
        return dict(output) if output['name'] == 'stdout' else None
    data = output.get('data', {})
    if 'image/png' in data:
        kept = {'image/png': _small(''.join(data['image/png']))}
    elif 'text/markdown' in data:
        kept = {'text/markdown': data['text/markdown']}
    elif output['output_type'] == 'execute_result' and 'text/plain' in data:
        kept = {'text/plain': data['text/plain']}
    else:  # a library's progress bar
        return None
    return {**output, 'data': kept, 'metadata': {}}


def _small(png: str) -> str:
    """The same picture in few colours, base64 as it came."""
    from PIL import Image

    small = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
    picture.quantize(COLOURS).save(small, 'png', optimize=True)
    return base64.b64encode(small.getvalue()).decode() + '\n'


def write(path: pathlib.Path, notebook: Notebook) -> None:
    """Writes it as Jupyter does."""
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + '\n')


def page(notebook: Notebook, name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as a page of the site.

    Args:
      notebook: with its outputs.
      name: of the folder beside the page in which its pictures lie.

    Returns:
      The page in Markdown, and {file name: PNG} of its pictures.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook['cells']:
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            parts.append(text.replace('](../docs/', '](../'))
            continue
        parts.append(f'```python\n{text}\n```')
        for output in cell['outputs']:
            shown = _shown(output)
            if isinstance(shown, bytes):
                file = f'{cell["id"]}.png'
                pictures[file] = shown
                shown = f'![{cell["id"]}]({name}/{file})'
            parts.append(shown)
    return '\n\n'.join(parts) + '\n', pictures


def _shown(output: Mapping[str, Any]) -> str | bytes:
    if output['output_type'] == 'stream':
        return '```text\n' + ''.join(output['text']).rstrip() + '\n```'
    ((kind, value),) = output['data'].items()
    if kind == 'image/png':
        return base64.b64decode(''.join(value))
    text = ''.join(value)
    return text if kind == 'text/markdown' else f'```text\n{text}\n```'


if __name__ == '__main__':
    for found in sorted(EXAMPLES.glob('*.ipynb')):
        shutil.rmtree(ROOT / RUN, ignore_errors=True)
        start = time.monotonic()
        write(found, execute(found))
        size = found.stat().st_size / 1000
        print(f'{found.relative_to(ROOT)}: {time.monotonic() - start:.0f} s, {size:.0f} kB')
