"""What a comparison of trainings says: sentences and tables, as plain text and as HTML
fragments.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sigma_jax.evaluation.metrics import ERRORS
from sigma_jax.evaluation.report.tables import (
    SPANS,  # fmt: skip
    answer,  # fmt: skip
    breakable,  # fmt: skip
    change_text,  # fmt: skip
    describe,  # fmt: skip
    error_cell,  # fmt: skip
    join,  # fmt: skip
    number,  # fmt: skip
    outcome,  # fmt: skip
    table,  # fmt: skip
)

KINDS = {
    'test': 'held-out test',
    'calibration': 'calibration (not test)',
    'train': 'training (not held-out)',
}
BASE = 'pi05'
UNITS = {18: 'E', 15: 'P', 12: 'T', 9: 'G', 6: 'M', 3: 'k'}


def find(comparison: Mapping, method: str | None, against: str | None) -> Mapping[str, Any] | None:
    """The contrast of two methods.

    Args:
      comparison: section of the report.
      method: name of the method.
      against: name of the other.

    Returns:
      The contrast; None where there is none.
    """
    pairs = ((c['arm'], c['against'], c) for c in comparison['contrasts'])
    return next((c for one, other, c in pairs if (one, other) == (method, against)), None)


def answer_of(contrast: Mapping) -> str:
    """The first word on a contrast: 'Yes:', 'No, it hurts:', 'In part:', 'Mixed:' or 'Not shown:',
    by which intervals exclude zero.

    Args:
      contrast: of the report.

    Returns:
      The text.
    """
    signs = {outcome(contrast[key]) for key in ERRORS}
    if {'lower', 'higher'} <= signs:
        return 'Mixed:'
    if signs == {'higher', 'open'}:
        return 'No, in part it hurts:'
    first = answer([contrast[key] for key in ERRORS])
    return 'No, it hurts:' if first == 'No:' else first


def telepathy_verdict(comparison: Mapping) -> str:
    """One sentence: is Sigma better than the same model trained without telepathy, on which
    episodes, how surely.

    Args:
      comparison: section of the report.

    Returns:
      The sentence.
    """
    full, without = comparison['full'], comparison['no_tau']
    contrast = find(comparison, full, without)
    if contrast is None:
        missing = 'with telepathy and all other parts' if full is None else 'without telepathy'
        return (
            f'Not tested: among these trainings there is no Sigma {missing}, so what telepathy '
            'is worth stays open.'
        )
    runs = f'{seeds(comparison, full)} with telepathy, {seeds(comparison, without)} without'
    parts = [f'{describe(contrast[key])} for the {SPANS[key]}' for key in ERRORS]
    return (
        f"{answer_of(contrast)} on {episodes(comparison)} ({runs}), Sigma's error against the "
        f'same model trained without telepathy is {join(parts)} '
        f'({certainty(comparison, full, without)}).'
    )


def reading(comparison: Mapping) -> str:
    """What the intervals of that contrast do and do not say, in a sentence; '' where the first one
    says it all.

    Args:
      comparison: section of the report.

    Returns:
      The sentence.
    """
    contrast = find(comparison, comparison['full'], comparison['no_tau'])
    if contrast is None:
        return ''
    signs = [outcome(contrast[key]) for key in ERRORS]
    if all(contrast[key]['low'] is None for key in ERRORS):
        return 'One episode gives no interval, so nothing is shown.'
    if set(signs) == {'open'}:
        limits = [
            contrast[key][side]
            for key in ERRORS
            for side in ('low', 'high')
            if contrast[key][side] is not None
        ]
        span = f'from {change_text(min(limits))} to {change_text(max(limits))}'
        return (
            f'All three intervals hold zero: no effect of telepathy is shown; effects {span} '
            'are not ruled out.'
        )
    words = {'lower': 'telepathy helps', 'higher': 'telepathy hurts', 'open': 'no effect is shown'}
    said = [f'{words[sign]} for the {SPANS[key]}' for key, sign in zip(ERRORS, signs, strict=True)]
    return f'{join(said)}.'.capitalize() if len(set(signs)) > 1 else ''


def certainty(comparison: Mapping, *rows: str) -> str:
    """What the intervals are over.

    Args:
      comparison: section of the report.
      *rows: that are compared.

    Returns:
      In words.
    """
    many = all(len(comparison['rows'][row]['seeds']) > 1 for row in rows)
    return (
        '95 % intervals over seeds and episodes'
        if many
        else '95 % intervals over episodes; one seed tells no runs apart'
    )


def gain_verdict(comparison: Mapping) -> str:
    """A sentence a reference: full Sigma against its frozen base, and against plain fine-tuning.

    Args:
      comparison: section of the report.

    Returns:
      Sentences.
    """
    full = comparison['full']
    others = [(BASE, 'its frozen base')]
    others += [
        (row, f'plain LoRA of the same policy ({row}, one sample)') for row in comparison['tuned']
    ]
    others += [(name, f'the mean of its samples ({name})') for name in means(comparison)]
    said = []
    for name, words in others:
        if contrast := find(comparison, full, name):
            changes = ', '.join(f'{describe(contrast[key])} ({SPANS[key]})' for key in ERRORS)
            said.append(f'Against {words}: {changes}.')
    return ' '.join(said)


def means(comparison: Mapping) -> list[str]:
    """Methods that are the mean of a fine-tuned policy's samples.

    Args:
      comparison: section of the report.

    Returns:
      Their names.
    """
    return [
        name
        for name in comparison['arms']
        if any(name.startswith(f'{row}_mean') for row in comparison['tuned'])
    ]


def episodes(comparison: Mapping) -> str:
    """How many episodes a comparison has, such as '11 held-out test episodes'.

    Args:
      comparison: section of the report.

    Returns:
      In words.
    """
    count = comparison['num_episodes']
    return f'{count} {KINDS[comparison["split"]]} episode{"s" * (count > 1)}'


def seeds(comparison: Mapping, row: str) -> str:
    """How many trainings a row has, such as '5 runs'.

    Args:
      comparison: section of the report.
      row: its name.

    Returns:
      In words.
    """
    count = len(comparison['rows'][row]['seeds'])
    return f'{count} run{"s" * (count > 1)}'


def parts_of(comparison: Mapping) -> list[Mapping]:
    """Full Sigma against each model trained without one of its parts, telepathy first: what that
    part is worth.

    Args:
      comparison: section of the report.

    Returns:
      Contrasts.
    """
    full = comparison['full']
    names = sorted(comparison['ablations'], key=lambda name: name != comparison['no_tau'])
    return [c for c in (find(comparison, full, name) for name in names) if c is not None]


def references_of(comparison: Mapping) -> list[Mapping]:
    """Full Sigma, with and without adapter, against base and fine-tuned policies.

    Args:
      comparison: section of the report.

    Returns:
      Contrasts.
    """
    full = comparison['full']
    methods = (full, f'{full}+adapter')
    found = [
        find(comparison, method, o)
        for o in (BASE, *comparison['tuned'], *means(comparison))
        for method in methods
    ]
    return [c for c in found if c is not None]


def contrast_table(contrasts: Sequence[Mapping], mark: str | None = None) -> str:
    """A row a contrast: change of each error, its interval below.

    Args:
      contrasts: of the report.
      mark: the method that stands out; None: none.

    Returns:
      HTML.
    """
    rows = [
        [f'{breakable(c["arm"])}<br><small>against {breakable(c["against"])}</small>']
        + [change_cell(c[key]) for key in ERRORS]
        for c in contrasts
    ]
    marked = next((n for n, c in enumerate(contrasts) if c['against'] == mark), None)
    return table(
        ['contrast', *(f'{key}<br><small>{SPANS[key]}</small>' for key in ERRORS)], rows, marked
    )


def change_cell(change: Mapping) -> str:
    """A change over its interval, such as '−20.0 %' over '[−25.1, −14.2]', coloured where the
    interval excludes zero.

    Args:
      change: value and limits.

    Returns:
      HTML.
    """
    paint = {'lower': 'good', 'higher': 'bad'}.get(outcome(change), 'open')
    limits = '' if change['low'] is None else '<br><small>[' + limits_text(change) + ']</small>'
    return f'<span class={paint}>{change_text(change["value"])}</span>{limits}'


def limits_text(change: Mapping) -> str:
    """An interval's limits, such as '−25.1, −14.2'.

    Args:
      change: value and limits.

    Returns:
      The text.
    """
    return ', '.join(change_text(change[key], unit='') for key in ('low', 'high'))


def methods_table(comparison: Mapping) -> str:
    """Every method: seeds, three errors with their change against the base, parameters and compute.

    Args:
      comparison: section of the report.

    Returns:
      HTML.
    """
    rows = []
    for name, method in comparison['arms'].items():
        against = find(comparison, name, BASE) or {}
        cells = [error_cell(method[key] | {'change': against.get(key)}, name) for key in ERRORS]
        rows.append([breakable(name), str(len(method['seeds']) or '–'), *cells])
    header = ['method', 'seeds', *(f'{key}<br><small>{SPANS[key]}</small>' for key in ERRORS)]
    return table(
        header,
        rows,
        list(comparison['arms']).index(comparison['full']) if comparison['full'] else None,
    )


def cost_table(costs: Mapping) -> str:
    """Parameters that learn and compute of every row.

    Args:
      costs: of the report, by row.

    Returns:
      HTML.
    """
    rows = [
        [
            breakable(name),
            thousands(cost['trainable_parameters']),
            operations(cost['flops_own']),
            operations(cost['flops_in_all']),
            thousands(cost['steps']),
            thousands(cost['training_windows']),
            operations(cost.get('flops_training')),
        ]
        for name, cost in costs.items()
    ]
    header = [
        'method',
        'trainable',
        'own pass',
        'with its base sample',
        'steps',
        'windows seen',
        'training',
    ]
    return table(header, rows)


def thousands(count: int | None) -> str:
    """A count such as '1,865,379'; a dash for None.

    Args:
      count: any.

    Returns:
      The text.
    """
    return '–' if count is None else f'{int(count):,}'


def operations(count: float | None) -> str:
    """A number of operations such as '12.3 GFLOP'.

    Args:
      count: of floating-point operations; None: a dash.

    Returns:
      The text.
    """
    if count is None:
        return '–'
    power = next((p for p in UNITS if count >= 10**p), 3)
    return f'{number(count / 10**power)} {UNITS[power]}FLOP'


def rows_note(comparison: Mapping) -> str:
    """Which gates each row was trained with, and what could not take part.

    Args:
      comparison: section of the report.

    Returns:
      HTML.
    """
    said = [
        f'{row}: {", ".join(changed(facts["gates"])) or facts["role"]}'
        for row, facts in comparison['rows'].items()
    ]
    left = comparison.get('left_out') or []
    return html.escape(
        '; '.join(said) + (f'. Left out, unfinished: {", ".join(left)}' if left else '') + '.'
    )


def changed(gates: Mapping[str, float]) -> Iterable[str]:
    """Gates that are not as in the full model.

    Args:
      gates: {gate: value}.

    Returns:
      Their names with values.
    """
    return [
        f'{name} = {float(value):g}'
        for name, value in gates.items()
        if float(value) != (name != 'tau_const')
    ]
