"""A sheet of some windows: a row each, with what every camera saw and every joint's actions."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sigma_jax.data.shards.directory import Shards
from sigma_jax.data.shards.meta import Meta
from sigma_jax.data.shards.records import Record, Records
from sigma_jax.data.shards.summary import choose_windows

ROW, HEAD, FOOT = 1.25, 0.9, 0.85  # inches
LABEL, IMAGE, PANEL = 2.1, 1.25, 1.2
DPI = 110
STYLE: dict[Any, Any] = {
    'font.size': 8,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.edgecolor': '#999999',
    'xtick.color': '#555555',
    'ytick.color': '#555555',
    'axes.linewidth': 0.6,
    'text.parse_math': False,  # a task may hold a dollar
}
NOTE = (
    'lines: the {horizon} actions of a window, in the joint units of the data set, over '
    'seconds from its first frame\norange dot: state at the first frame; grey: padding; dotted: '
    'end of the chunk of {chunk} actions; a joint has one scale in all rows'
)


def contact_sheet(shards: Shards, windows: int) -> bytes:
    """An image of windows from all splits and episodes; the same shards give the same image.

    Args:
      shards: finished.
      windows: how many.

    Returns:
      The bytes of a PNG.

    Raises:
      UserError: damaged shards, or fewer than one window wanted.
    """
    chosen = choose_windows(shards.meta.windows, windows)
    sources = {split: shards.split(split).records() for split, _ in chosen}
    records = [sources[split][number] for split, number in chosen]
    labels = [_label(sources[split], number) for split, number in chosen]
    with mpl.rc_context(STYLE):
        return _png(_draw(shards.meta, records, labels))


def _label(source: Records, number: int) -> tuple[str, str, str]:
    """Three lines: split, place, task."""
    index, meta = source.index, source.meta
    frame = int(index.frame[number])
    task = textwrap.wrap(meta.tasks[index.text_id[number]], 30, max_lines=3, placeholder=' …')
    place = f'episode {index.episode[number]}, frame {frame} ({frame / meta.fps:.2f} s)'
    return f'{source.split} #{number}', place, '\n'.join(task)


def _draw(meta: Meta, records: Sequence[Record], labels: Sequence[tuple[str, str, str]]) -> Figure:
    cameras, joints = meta.camera_names, meta.action_names
    widths = [LABEL, *[IMAGE] * len(cameras), *[PANEL] * len(joints)]
    height = HEAD + ROW * len(records) + FOOT
    figure = Figure(figsize=(sum(widths) + 0.4, height))
    grid = figure.subplots(
        len(records),
        len(widths),
        squeeze=False,
        gridspec_kw={'width_ratios': widths, 'wspace': 0.32, 'hspace': 0.22}
        | {'left': 0.012, 'right': 0.988, 'top': 1 - HEAD / height, 'bottom': FOOT / height},
    )
    limits = _limits(meta, records)
    for axes, record, label in zip(grid, records, labels, strict=True):
        _write_label(axes[0], label)
        for view, image in zip(axes[1:], record.images, strict=False):
            view.imshow(image, interpolation='nearest')
            view.set_axis_off()
        for j, panel in enumerate(axes[1 + len(cameras) :]):
            _plot(panel, meta, record, j, limits[j])
            panel.tick_params(labelbottom=record is records[-1])
        if record is records[-1]:
            axes[1 + len(cameras)].set_xlabel(
                'seconds', fontsize=7, labelpad=1, loc='left', color='#555555'
            )
    _write_heads(figure, grid[0], meta, height, len(records))
    return figure


def _limits(meta: Meta, records: Sequence[Record]) -> list[tuple[float, float]]:
    """One scale a joint, over all rows: what is drawn and a little more; a still joint gets one
    unit.
    """
    limits = []
    for j, name in enumerate(meta.action_names):
        values = np.concatenate(
            [r.actions[:, j] for r in records] + [_state(meta, r, name) for r in records]
        )
        middle, half = (
            (values.max() + values.min()) / 2,
            max((values.max() - values.min()) / 2, 0.5),
        )
        limits.append((float(middle - 1.12 * half), float(middle + 1.12 * half)))
    return limits


def _state(meta: Meta, record: Record, name: str) -> np.ndarray:
    """[1] the state of the joint that an action is called after, [0] where there is none."""
    return record.state[[i for i, other in enumerate(meta.state_names) if other == name][:1]]


def _plot(axes: Axes, meta: Meta, record: Record, joint: int, limits: tuple[float, float]) -> None:
    times, real = np.arange(len(record.actions)) / meta.fps, record.action_mask
    state = _state(meta, record, meta.action_names[joint])
    axes.plot(times, record.actions[:, joint], color='#bbbbbb', linewidth=1.2)
    axes.plot(times[real], record.actions[real, joint], color='#1f5fa8', linewidth=1.5)
    axes.plot(np.zeros(len(state)), state, 'o', color='#d9762b', markersize=3.5, clip_on=False)
    axes.axvline((meta.chunk - 0.5) / meta.fps, color='#999999', linewidth=0.7, linestyle=':')
    axes.set_ylim(*limits)
    axes.set_xlim(0, max(times[-1], 1 / meta.fps))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_locator(MaxNLocator(2))
    axes.tick_params(labelsize=6.5, length=2, pad=1.5, width=0.6)


def _write_label(axes: Axes, label: tuple[str, str, str]) -> None:
    axes.set_axis_off()
    for text, y, style in zip(label, (0.98, 0.80, 0.60), ('bold', 'normal', 'normal'), strict=True):
        axes.text(0, y, text, weight=style, va='top', transform=axes.transAxes, linespacing=1.25)


def _write_heads(
    figure: Figure, first: Sequence[Axes], meta: Meta, height: float, rows: int
) -> None:
    names = [*meta.camera_names, *(name.removesuffix('.pos') for name in meta.action_names)]
    for axes, name in zip(first[1:], names, strict=True):
        axes.set_title(
            textwrap.shorten(name.replace('_', ' '), 18, placeholder='…'), fontsize=8.5, pad=6
        )
    total = sum(meta.windows.values())
    title = f'{rows} of {total} windows of {meta.source}'
    figure.text(0.012, 1 - 0.12 / height, title, fontsize=11, weight='bold', va='top')
    sizes = ', '.join(f'{name} {s[0]}×{s[1]}' for name, s in (meta.camera_sizes or {}).items())
    side = f'images as stored, {meta.image_size}×{meta.image_size} pixels'
    side += f' (source: {sizes})' if sizes else ''  # older preparations do not say
    subtitle = f'{side}; {meta.fps:g} frames a second, a window every {meta.stride} frames'
    figure.text(0.012, 1 - 0.38 / height, subtitle, va='top', color='#555555')
    note = NOTE.format(horizon=meta.horizon, chunk=meta.chunk)
    figure.text(0.012, 0.06 / height, note, va='bottom', color='#555555', linespacing=1.3)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=DPI, metadata={'Software': None})
    return buffer.getvalue()
