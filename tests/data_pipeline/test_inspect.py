"""`--inspect`: everything meta.json knows is printed, and the sheet shows windows of every
split.
"""

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from rich.console import Console

import prepare_data
from sigma_jax.cli.tables import section_table
from sigma_jax.data.shards import contact_sheet as sheet
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.data.shards.summary import choose_windows, sections
from sigma_jax.errors import UserError
from tests.data_pipeline import damages, recordings


@pytest.fixture(scope='module')
def out(tmp_path_factory) -> Path:
    """Shards of six episodes, one of them damaged and left out."""
    source = recordings.record(tmp_path_factory.mktemp('source'), (40, 25, 33, 24, 12, 20))
    damages.image_cell({'bytes': b'[red]no picture[/]', 'path': None})(source)
    path = tmp_path_factory.mktemp('shards') / 'out'
    prepare(recordings.config(source, on_bad_episode='skip', tail='pad'), path)
    return path


def test_every_setting_count_and_digest_is_printed(out: Path) -> None:
    meta, written = open_shards(out).meta.to_json(), io.StringIO()
    console = Console(file=written, width=200)
    for title, rows in sections(open_shards(out).meta):
        console.print(section_table(title, rows))
    text = written.getvalue()
    for name in (
        set(recordings.SETTINGS) - {'source', 'tokenizer'}
        | set(meta['files'])
        | set(meta['versions'])
    ):
        assert name in text, name
    for part in (
        meta['source'],
        meta['source_digest'][:12],
        'up 24×32',
        '1 bad episode',
        'episode 1 ',
        *meta['tasks'],
    ):
        assert part in text, part
    assert all(f'{meta["windows"][split]} windows of' in text for split in meta['splits'])
    assert 'got "cannot identify image file' in text


def test_text_of_a_data_set_is_no_markup() -> None:
    written = io.StringIO()
    Console(file=written, width=80).print(
        section_table('tasks', [('[bold]', '[link=x]lift[/link]')])
    )
    assert '[link=x]lift[/link]' in written.getvalue() and '[bold]' in written.getvalue()


@pytest.mark.parametrize(
    ('wanted', 'chosen'),
    [
        (1, [('train', 30)]),
        (3, [('train', 30), ('calibration', 5), ('test', 1)]),
        (8, [*[('train', n) for n in (5, 15, 25, 35, 45, 55)], ('calibration', 5), ('test', 1)]),
    ],
)
def test_windows_are_spread_over_splits_and_over_each(
    wanted: int, chosen: list[tuple[str, int]]
) -> None:
    assert choose_windows({'train': 60, 'calibration': 10, 'test': 2}, wanted) == chosen


def test_no_window_is_drawn_twice_and_empty_splits_are_left_out() -> None:
    chosen = choose_windows({'train': 3, 'calibration': 0, 'test': 2}, 50)
    assert (
        sorted(set(chosen))
        == sorted(chosen)
        == [('test', 0), ('test', 1), *[('train', n) for n in range(3)]]
    )
    with pytest.raises(UserError, match='at least one window'):
        choose_windows({'train': 3}, 0)


def test_the_sheet_lies_beside_the_shards_and_changes_nothing_else(out: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    written = io.StringIO()
    prepare_data.inspect(out, 2, Console(file=written, width=200))
    assert 'contact_sheet.png: written' in written.getvalue()
    png = (out / 'contact_sheet.png').read_bytes()
    assert png == sheet.contact_sheet(open_shards(out), 2)  # the same shards, the same picture
    assert {
        path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.suffix != '.png'
    } == before
    with Image.open(io.BytesIO(png)) as image:
        shown = np.unique(np.asarray(image.convert('RGB')).reshape(-1, 3), axis=0).tolist()
    shards = open_shards(out)
    first = choose_windows(shards.meta.windows, 2)[0][1]
    picture = shards.split('train').records()[first].images[0]
    # nothing is blended: the stored pixels are on the sheet
    assert picture[16, 16].tolist() in shown


def test_lines_are_the_actions_and_padding_is_told_apart(out: Path) -> None:
    meta, records = open_shards(out).meta, open_shards(out).split('train').records()
    padded = next(n for n in range(len(records)) if not records[n].action_mask.all())
    figure = sheet._draw(meta, [records[padded]], [('train', 'episode', 'costs $5 or $6')])
    panels = figure.axes[3:]
    assert len(panels) == len(meta.action_names) == 6
    for j, axes in enumerate(panels):
        grey, blue, state = axes.lines[:3]
        assert np.array_equal(grey.get_ydata(), records[padded].actions[:, j])
        assert len(blue.get_ydata()) == records[padded].action_mask.sum() < 16
        assert state.get_ydata() == [records[padded].state[j]]
        assert np.asarray(grey.get_xdata())[-1] == 15 / meta.fps


def test_text_does_not_overlap(out: Path) -> None:
    records = open_shards(out).split('train').records()
    long = (
        'put the very small pink brick that lies left of the bowl into the transparent box and '
        'close the lid'
    )
    figure = sheet._draw(
        open_shards(out).meta,
        [records[0], records[1]],
        [('train #0', 'episode 0, frame 0', long[:30])] * 2,
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [
        text.get_window_extent(renderer)
        for axes in figure.axes
        for text in [*axes.texts, axes.title]
    ]
    boxes += [text.get_window_extent(renderer) for text in figure.texts]
    boxes = [box for box in boxes if box.width > 1]
    assert len(boxes) >= 2 * 3 + 8 + 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
