"""Forest plots of contrasts: one panel an error, a line a contrast, on a scale that fits what is
shown.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from sigma_jax.evaluation.metrics import ERRORS
from sigma_jax.evaluation.report.figures import colour, drawing, new_figure, render

LIMITS = (2, 5, 10, 20, 50, 75, 100, 200, 300)  # per cent on either side
PAINT = {True: '#1f5fa8', False: '#6b7a90'}


def contrasts(found: Sequence[Mapping[str, Any]], marked: str | None = None) -> str:
    """Change of one method's error against another's, per cent, with 95 % intervals.

    Args:
      found: contrasts of the report.
      marked: the method that stands out; None: none.

    Returns:
      SVG.
    """
    edge = edge_of(found)
    with drawing():
        figure, panels = new_figure(1, 3, 1.0 + 0.34 * len(found))
        for axes, key in zip(panels, ERRORS, strict=True):
            for y, contrast in enumerate(found[::-1]):
                draw(axes, y, contrast[key], PAINT[contrast['against'] == marked], edge)
            axes.axvline(0, color='#555555', linewidth=1)
            axes.set(
                title=key,
                yticks=range(len(found)),
                ylim=(-0.6, len(found) - 0.4),
                xlim=(-edge * 1.1, edge * 1.1),
            )
            axes.set_yticklabels(
                [label(c) for c in found[::-1]] if axes is panels[0] else [], fontsize=8
            )
            axes.set_xticks([-edge, 0, edge], [f'−{edge:g}', '0', f'+{edge:g}'])
        for name in panels[0].get_yticklabels():
            name.set_fontweight(
                'bold' if marked and name.get_text().endswith(f' {marked}') else 'normal'
            )
        panels[1].set_xlabel('change of the error, % (left: the first method is better; › beyond)')
        return render(figure)


def label(contrast: Mapping[str, Any]) -> str:
    """Name of a contrast, such as 'sigma − no_tau', broken where it is long.

    Args:
      contrast: of the report.

    Returns:
      The text.
    """
    parts = contrast['arm'], f'− {contrast["against"]}'
    return (' ' if sum(map(len, parts)) < 20 else '\n').join(parts)


def edge_of(found: Sequence[Mapping[str, Any]]) -> float:
    """The least of `LIMITS` that holds nine in ten of all limits shown.

    Args:
      found: contrasts of the report.

    Returns:
      Per cent.
    """
    changes = [c[key] for c in found for key in ERRORS]
    sizes = [abs(100 * x[k]) for x in changes for k in ('low', 'value', 'high') if x[k] is not None]
    return next((limit for limit in LIMITS if limit >= np.quantile(sizes or [0], 0.9)), LIMITS[-1])


def draw(axes: Axes, y: float, change: Mapping[str, Any], paint: str, edge: float) -> None:
    """A dot and its interval, per cent; an arrow at the side for what lies beyond.

    Args:
      axes: to draw on.
      y: place of the row.
      change: value and limits.
      paint: colour.
      edge: of the axes, per cent.
    """
    if change['value'] is None:
        return
    value = 100 * change['value']
    if change['low'] is not None:
        ends = np.clip([100 * change['low'], 100 * change['high']], -1.1 * edge, 1.1 * edge)
        axes.plot(ends, [y, y], color=paint, linewidth=2)
    marker = 'o' if abs(value) <= edge else '>' if value > 0 else '<'
    axes.plot(np.clip(value, -edge, edge), y, marker, color=paint, markersize=5)


def robustness(rows: Sequence[Mapping[str, Any]]) -> str:
    """Error of the trajectory over the levels of each kind; the left end of every line is the clean
    recording.

    Args:
      rows: section of the report.

    Returns:
      SVG.
    """
    clean, kinds = rows[0], list(dict.fromkeys(row['kind'] for row in rows[1:]))
    with drawing():
        figure, panels = new_figure(1, max(len(kinds), 1), 2.6)
        for axes, kind in zip(panels, kinds, strict=False):
            levels = [clean, *(row for row in rows if row['kind'] == kind)]
            for method in clean['arms']:
                values = [row['arms'][method]['mse_trj']['value'] for row in levels]
                axes.plot(
                    range(len(levels)),
                    values,
                    'o-',
                    markersize=3,
                    color=colour(method),
                    label=method,
                )
            axes.set(title=kind.replace('_', ' '), xticks=range(len(levels)), ylim=(0, None))
            axes.set_xticklabels([short(row) for row in levels], fontsize=8)
        panels[0].set_ylabel('mse_trj, raw units')
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside lower center', ncols=len(labels), fontsize=8)
        return render(figure)


def short(row: Mapping[str, Any]) -> str:
    """A level for an axis, such as '10', '30 %', '8 fr.'.

    Args:
      row: of the report.

    Returns:
      The text.
    """
    if row['kind'] == 'none':
        return 'clean'
    first = row['name'].split()[0]
    return {'camera_noise': first, 'dropped_frames': f'{first} %'}.get(row['kind'], f'{first} fr.')
