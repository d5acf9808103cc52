"""Figures of the evaluation report: each function draws one figure and returns it as SVG text.

Figures are narrow and their letters large, so that they read on a phone. No global matplotlib state
is used but the style, within `drawing`.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sigma_jax.evaluation.metrics import ERRORS

COLOURS = {
    'truth': '#1a1a1a',
    'hold': '#b9a37e',
    'mean': '#9a9a9a',
    'pi05': '#d9762b',
    'pi05_bias': '#a8482f',
    'sigma': '#1f5fa8',
    'sigma+adapter': '#2a9d8f',
    'no_tau': '#8e7cc3',
    'pi05_lora': '#5a8f3c',
}
OTHER = '#8e7cc3'
DASHES = {'sigma_reset': '--', 'sigma_tau_off+adapter': '-.'}
EDGE = 115  # per cent shown in the forest plot on either side
STYLE: dict[Any, Any] = {
    'font.size': 9,
    'axes.titlesize': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.edgecolor': '#999999',
    'axes.grid': True,
    'grid.color': '#e8e8e8',
    'grid.linewidth': 0.7,
    'lines.linewidth': 1.5,
    'legend.frameon': False,
    'svg.hashsalt': 'sigma_jax',
}
CURVES = (
    ('loss', 'total loss', ('loss',)),
    ('L_act', 'action terms', ('L_act', 'L_act_hard')),
    ('L_sem', 'semantic term', ('L_sem',)),
    ('L_int', 'intent term', ('L_int',)),
    ('L_tau', 'telepathy term', ('L_tau',)),
    ('tau_rms', 'rms of tau', ('tau_rms',)),
    ('w_sem', 'curriculum weights', ('w_sem', 'w_int', 'w_tau')),
)


def colour(method: str) -> str:
    """The colour of a method, the same in every figure.

    Args:
      method: its name.

    Returns:
      A colour of matplotlib.
    """
    return COLOURS.get(method, OTHER)


def render(figure: Figure) -> str:
    """SVG text, the same for the same figure.

    Args:
      figure: drawn.

    Returns:
      The text.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format='svg', metadata={'Date': None})
    return buffer.getvalue()


def drawing():
    """The style of all figures, as a context."""
    return mpl.rc_context(STYLE)


def new_figure(rows: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of the common width.

    Args:
      rows: of axes.
      columns: of axes.
      height: inches.

    Returns:
      figure: empty.
      axes: in reading order.
    """
    figure = Figure(figsize=(5.8, height), layout='constrained')
    return figure, list(np.atleast_1d(figure.subplots(rows, columns)).ravel())


def forest(methods: Mapping[str, dict]) -> str:
    """Change of each method's error against the base, per cent, with 95 % intervals; one panel per
    error.

    Args:
      methods: of a split in the report.

    Returns:
      SVG.
    """
    names = [name for name in methods if name != 'pi05'][::-1]
    with drawing():
        figure, panels = new_figure(1, 3, 0.9 + 0.27 * len(names))
        for axes, key in zip(panels, ERRORS, strict=True):
            for y, name in enumerate(names):
                draw_interval(axes, y, methods[name][key]['change'], colour(name))
            axes.axvline(0, color='#555555', linewidth=1)
            axes.set(
                title=key,
                yticks=range(len(names)),
                ylim=(-0.6, len(names) - 0.4),
                xlim=(-EDGE, EDGE),
            )
            axes.set_yticklabels(names if axes is panels[0] else [])
            axes.set_xticks([-100, -50, 0, 50, 100], ['−100', '', '0', '', '+100'])
        panels[1].set_xlabel('change against pi05, % (left is better; › beyond)')
        return render(figure)


def draw_interval(axes: Axes, y: float, change: Mapping[str, Any], paint: str) -> None:
    """A dot and, where there is one, its interval; per cent. An arrow at the edge for a value
    beyond it.

    Args:
      axes: to draw on.
      y: place of the row.
      change: value and limits.
      paint: colour.
    """
    if change['value'] is None:
        return
    value = 100 * change['value']
    if change['low'] is not None:
        axes.plot(
            np.clip([100 * change['low'], 100 * change['high']], -EDGE, EDGE),
            [y, y],
            color=paint,
            linewidth=2,
        )
    axes.plot(min(value, EDGE - 6), y, 'o' if value < EDGE else '>', color=paint, markersize=5)


def training_curves(log: Mapping[str, Float[np.ndarray, 'n']]) -> str:
    """The columns of Table 1 over optimiser steps; columns that the log lacks are left out.

    Args:
      log: {column: values}.

    Returns:
      SVG.
    """
    shown = [
        (title, [c for c in columns if c in log]) for key, title, columns in CURVES if key in log
    ]
    with drawing():
        figure, panels = new_figure(-(-len(shown) // 2), 2, 0.3 + 1.5 * -(-len(shown) // 2))
        for axes, (title, columns) in zip(panels, shown, strict=False):
            for name, paint in zip(columns, ('#1f5fa8', '#d9762b', '#2a9d8f'), strict=False):
                draw_curve(axes, log['step'], log[name], name, paint)
            axes.set_title(title)
            if len(columns) > 1:
                axes.legend(fontsize=8)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        for axes in panels[max(0, len(shown) - 2) : len(shown)]:
            axes.set_xlabel('optimiser step')
        return render(figure)


def draw_curve(axes: Axes, step: np.ndarray, values: np.ndarray, name: str, paint: str) -> None:
    """The raw values pale, their running mean over a fiftieth of the run strong.

    Args:
      axes: to draw on.
      step: of each value.
      values: of the column.
      name: of the column.
      paint: colour.
    """
    width = 1 if name.startswith('w_') else max(1, len(values) // 50)
    if width > 1:
        axes.plot(step, values, color=paint, alpha=0.25, linewidth=0.8)
    kernel = np.ones(width)
    smooth = np.convolve(values, kernel, 'same') / np.convolve(np.ones(len(values)), kernel, 'same')
    axes.plot(step, smooth, color=paint, label=name)


def error_by_step(methods: Mapping[str, dict]) -> str:
    """Mean squared error over the steps of a window, one line a method, logarithmic.

    Args:
      methods: of a split in the report.

    Returns:
      SVG.
    """
    with drawing():
        figure, (axes,) = new_figure(1, 1, 3.2)
        for name, method in methods.items():
            values = np.asarray(method['by_step'], float)
            style = DASHES.get(name, '-' if name in COLOURS else ':')
            if (values > 0).any():
                axes.plot(1 + np.arange(len(values)), values, style, color=colour(name), label=name)
        axes.set(xlabel='step of the window', ylabel='mean squared error, raw units', yscale='log')
        axes.legend(fontsize=8, ncols=3, loc='upper center', bbox_to_anchor=(0.5, -0.2))
        return render(figure)


def trajectories(example: Mapping) -> str:
    """Each joint over one episode: truth, and every method's windows laid end to end without
    overlap.

    Args:
      example: section of the report.

    Returns:
      SVG.
    """
    joints, frames = example['joints'], np.asarray(example['frame'])
    horizon = np.asarray(example['truth']).shape[1]
    rows = disjoint(frames, horizon)
    with drawing():
        figure, panels = new_figure(-(-len(joints) // 2), 2, 0.6 + 1.5 * -(-len(joints) // 2))
        for joint, axes in enumerate(panels[: len(joints)]):
            for name, actions in (example['arms'] | {'truth': example['truth']}).items():
                draw_windows(axes, frames[rows], np.asarray(actions, float)[rows, :, joint], name)
            axes.set_title(joints[joint])
        for axes in panels[len(joints) :]:
            axes.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside lower center', ncols=len(labels), fontsize=8)
        return render(figure)


def disjoint(frames: np.ndarray, horizon: int) -> list[int]:
    """Indices of windows that follow each other without overlap, from the first on.

    Args:
      frames: first frame of each window.
      horizon: steps of a window.

    Returns:
      The indices.
    """
    rows: list[int] = []
    for index, frame in enumerate(frames):
        if not rows or frame >= frames[rows[-1]] + horizon:
            rows.append(index)
    return rows


def draw_windows(
    axes: Axes, frames: np.ndarray, values: Float[np.ndarray, 'n t'], name: str
) -> None:
    """One line, broken between windows.

    Args:
      axes: to draw on.
      frames: first frame of each window.
      values: of one joint.
      name: of the method.
    """
    steps = np.arange(values.shape[1])
    gap = np.full((len(values), 1), np.nan)
    x = np.concatenate([frames[:, None] + steps, gap], axis=1).ravel()
    width = 1.0 if name == 'truth' else 1.4
    axes.plot(
        x,
        np.concatenate([values, gap], axis=1).ravel(),
        color=colour(name),
        label=name,
        linewidth=width,
    )


def tau_over_episode(example: Mapping) -> str:
    """Norm of tau along one episode, memory carried through it and reset as in training.

    Args:
      example: section of the report.

    Returns:
      SVG.
    """
    with drawing():
        figure, (axes,) = new_figure(1, 1, 2.4)
        axes.plot(
            example['frame'],
            example['tau_l2'],
            'o-',
            markersize=3,
            color=COLOURS['sigma'],
            label='carried',
        )
        axes.plot(
            example['frame'],
            example['tau_l2_reset'],
            's:',
            markersize=3,
            color=OTHER,
            label='reset',
        )
        axes.set(xlabel='frame of the episode', ylabel='L2 norm of tau')
        axes.margins(y=0.15)
        axes.legend(fontsize=8, title='memory', title_fontsize=8)
        return render(figure)


def adapter_scale(recorded: Mapping[str, Sequence], episode: int) -> str:
    """The adapter's scale for all windows of a split, one episode strong.

    Args:
      recorded: {quantity: one value a window}.
      episode: that is drawn strong.

    Returns:
      SVG.
    """
    frame, scale = np.asarray(recorded['frame']), np.asarray(recorded['scale'], float)
    episodes = np.asarray(recorded['episode'])
    with drawing():
        figure, (axes,) = new_figure(1, 1, 2.4)
        for number in np.unique(episodes):
            rows = episodes == number
            strong = number == episode
            axes.plot(
                frame[rows],
                scale[rows],
                'o-' if strong else '-',
                markersize=3,
                color=COLOURS['sigma+adapter'] if strong else '#c9d6d3',
                linewidth=1.5 if strong else 0.8,
                zorder=2 + strong,
            )
        axes.set(
            xlabel='frame of the episode',
            ylabel='scale',
            ylim=(-0.05, 1.05 * max(1.0, scale.max())),
        )
        return render(figure)
