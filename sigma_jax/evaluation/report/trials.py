"""Stress, robustness and the adapter's sweep as sections of the page."""

import html
from collections.abc import Mapping

from sigma_jax.evaluation.metrics import ERRORS
from sigma_jax.evaluation.report import forest
from sigma_jax.evaluation.report.tables import SPANS, breakable, change_text, image, number, table

MARKS = {
    None: 'uninformative',
    True: '<span class=good>holds</span>',
    False: '<span class=bad>fails</span>',
}


def stress_section(found: Mapping | None) -> str:
    """Each stress: errors relative to the base's, with and without adapter, and whether the bound
    holds.

    Args:
      found: section of the report; None: not measured.

    Returns:
      HTML.
    """
    if not found:
        return ''
    rows = []
    for values in [*found['rows'], found['without_stress']]:
        cells = [
            f'{ratio(values["sigma"][key])}<br><small>{ratio(values["adapter"][key])}</small>'
            for key in ERRORS
        ]
        rows.append(
            [
                html.escape(values['stress']),
                *cells,
                number(values['mean_scale']),
                MARKS[values['holds']],
            ]
        )
    header = [
        'stress',
        *(f'{key}<br><small>with adapter</small>' for key in ERRORS),
        'scale',
        'verdict',
    ]
    bounds = found['bounds']
    lines = ''.join(f'<li>{html.escape(line)}</li>' for line in verdicts(found))
    return (
        '<h2>Adapter under stress</h2><p class=note>Errors relative to the base’s on the same '
        f'windows ({found["split"]}). A stress shows something only where plain Sigma’s error is '
        f'{bounds["informative"]:g} × the base’s or more; then the adapter’s must be at most '
        f'{bounds["adapter"]:g} ×. Without stress at least {100 * bounds["gain_kept"]:g} % of '
        f'Sigma’s gain must stay.</p><ul>{lines}</ul>{table(header, rows)}'
    )


def ratio(value: float | None) -> str:
    """A ratio such as '0.48 ×'.

    Args:
      value: any; None: a dash.

    Returns:
      The text.
    """
    return '–' if value is None else f'{number(value)} ×'


def robustness_section(found: Mapping | None) -> str:
    """Errors of base, Sigma and Sigma with adapter under camera noise, dropped images and delayed
    state.

    Args:
      found: section of the report; None: not measured.

    Returns:
      HTML.
    """
    if not found:
        return ''
    names = list(found['rows'][0]['arms'])
    rows = [
        [
            html.escape(
                f'{row["kind"].replace("_", " ")}: {row["name"]}' if row['level'] else row['name']
            )
        ]
        + [
            cell(row['arms'][method][key], method)
            for key in ('mse_vec', 'mse_trj')
            for method in names
        ]
        for row in found['rows']
    ]
    header = ['observation'] + [
        f'{breakable(method)}<br><small>{SPANS[key]}</small>'
        for key in ('mse_vec', 'mse_trj')
        for method in names
    ]
    figure = image(forest.robustness(found['rows']), 'error over levels of perturbation')
    return (
        '<h2>Robustness</h2><p class=note>The base was sampled anew on each perturbed window '
        f'({found["base_samples"]} samples); small print: change against pi05 under the same '
        'perturbation. Dropped frames are black and not '
        f'masked.</p>{figure}{table(header, rows)}'
    )


def cell(error: Mapping, method: str) -> str:
    """An error over its change, such as '12.3' over '−20.0 %'; the base without a change.

    Args:
      error: value and change.
      method: name of the method.

    Returns:
      HTML.
    """
    if method == 'pi05':
        return number(error['value'])
    return f'{number(error["value"])}<br><small>{change_text(error["change"]["value"])}</small>'


def sweep_section(adapter: Mapping | None) -> str:
    """Error relative to the base's for every least and largest scale, best on calibration marked.

    Args:
      adapter: section of the report; None: none was fitted.

    Returns:
      HTML.
    """
    if not (adapter and adapter.get('sweep')):
        return ''
    sweep, limits = adapter['sweep'], ('min_scale', 'max_scale')
    splits = [key for key in sweep['rows'][0] if key not in limits]
    rows = [[number(float(row[key])) for key in (*limits, *splits)] for row in sweep['rows']]
    note = (
        'Adapted error relative to the base’s, mean of the three errors; the marked row is the '
        'best on calibration. The adapter in use keeps a least scale of 0 whatever this says: '
        'above it, no risk would bring back the base.'
    )
    grid = table([*limits, *splits], rows, sweep['chosen'])
    return (
        '<details><summary>Least and largest scale of the adapter</summary><p '
        f'class=note>{note}</p>{grid}</details>'
    )


def verdicts(stress: Mapping) -> list[str]:
    """A line for each stress, and one for the gain that is kept without.

    Args:
      stress: section of the report.

    Returns:
      Sentences.
    """
    lines = []
    for values in stress['rows']:
        worst = {method: max(values[method].values()) for method in ('sigma', 'adapter')}
        said = (
            f'plain Sigma {worst["sigma"]:.2f} × base, with adapter {worst["adapter"]:.2f} × base'
        )
        outcome = {None: 'uninformative', True: 'holds', False: 'FAILS'}[values['holds']]
        lines.append(f'{values["stress"]}: {outcome} ({said}, the worst of three errors)')
    calm = stress['without_stress']
    gains = [value for value in calm['gain_kept'].values() if value is not None]
    if not gains:
        return [
            *lines,
            'without stress: uninformative, Sigma gains nothing that the adapter could keep',
        ]
    said = f'{100 * min(gains):.1f} % of the gain kept, the least of {len(gains)} errors'
    return [*lines, f'without stress: {"holds" if calm["holds"] else "FAILS"} ({said})']
