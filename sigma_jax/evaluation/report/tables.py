"""Sentences and tables of the evaluation report, as HTML fragments."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sigma_jax.evaluation.metrics import ERRORS

Change = Mapping[str, Any]  # 'value', 'low', 'high': relative to pi05, None where unknown

SPANS = {'mse_vec': 'first action', 'mse_chk': 'chunk', 'mse_trj': 'trajectory'}
SIMPLE = ('hold', 'mean', 'pi05_bias')
PAPER = {
    'avg_mse_vector': ('79.03', '98.83'),
    'avg_mse_chunk': ('203.05', '228.97'),
    'avg_mse_traj': ('174.71', '191.03'),
    'avg_tau_l2': ('51.60', '51.60'),
    'avg_semantic_text_alignment': ('0.1307', '0.1307'),
    'hard_sample_fraction': ('1.0', '1.0'),
    'num_samples': ('723', '723'),
    'num_batches': ('181', '181'),
}  # (Sigma, pi05_base), paper section 6


def number(x: float | None) -> str:
    """Four significant digits without exponent where that reads well; a dash for None; counts
    whole.

    Args:
      x: any number.

    Returns:
      The text.
    """
    if x is None:
        return '–'
    if isinstance(x, int):
        return str(x)
    digits = f'{x:#.4g}'.rstrip('.') if 1e-3 <= abs(x) < 1e4 else f'{x:.4g}'
    return digits.replace('-', '−')


def percent(x: float | None) -> str:
    """A signed percentage with a true minus sign, one decimal.

    Args:
      x: a relative change; None: a dash.

    Returns:
      The text.
    """
    return '–' if x is None else f'{100 * x:+.1f} %'.replace('-', '−')


def headline_split(report: Mapping) -> str:
    """The split that answers the question: test where it was evaluated.

    Args:
      report: of `measure.evaluate`.

    Returns:
      Its name.
    """
    return headline(report['splits'])


def headline(splits: Mapping[str, Any]) -> str:
    """'test', or the last of these splits without it.

    Args:
      splits: by name.

    Returns:
      One of the names.
    """
    return 'test' if 'test' in splits else list(splits)[-1]


def size(split: Mapping) -> str:
    """How large a split is, such as '62 windows of 5 episodes'.

    Args:
      split: of the report.

    Returns:
      In words.
    """
    episodes = split['num_episodes']
    return f'{split["num_windows"]} windows of {episodes} episode{"s" * (episodes > 1)}'


def verdict(report: Mapping, method: str = 'sigma') -> str:
    """One sentence: does Sigma beat its base on held-out episodes, by how much, with interval.

    Args:
      report: of `measure.evaluate`.
      method: name of the method.

    Returns:
      The sentence.
    """
    name = headline_split(report)
    split = report['splits'][name]
    changes = {key: split['arms'][method][key]['change'] for key in ERRORS}
    kind = {'test': 'held-out test', 'calibration': 'calibration (not test)'}.get(
        name, 'training (not held-out)'
    )
    many = (
        'one episode, no interval'
        if split['num_episodes'] < 2
        else ('95 % intervals over episodes')
    )
    where = f'on {split["num_episodes"]} {kind} episode{"s" * (split["num_episodes"] > 1)}'
    parts = [f'{describe(change)} for the {SPANS[key]}' for key, change in changes.items()]
    subject = method.capitalize()
    return (
        f"{answer(changes.values())} {where}, {subject}'s error against its frozen base is "
        f'{join(parts)} ({many}).'
    )


def answer(changes: Any) -> str:
    """The first word: yes or no only where all three intervals exclude zero on the same side.

    Args:
      changes: of the three errors.

    Returns:
      The word.
    """
    signs = [outcome(change) for change in changes]
    if all(sign == 'lower' for sign in signs):
        return 'Yes:'
    if all(sign == 'higher' for sign in signs):
        return 'No:'
    return 'In part:' if 'lower' in signs else 'Not shown:'


def outcome(change: Change) -> str:
    """'lower', 'higher' or 'open' (the interval holds zero, or there is none).

    Args:
      change: value and limits.

    Returns:
      The word.
    """
    if change['low'] is None:
        return 'open'
    return 'lower' if change['high'] < 0 else 'higher' if change['low'] > 0 else 'open'


def describe(change: Change) -> str:
    """A change in words, such as '35.2 % lower [30.1, 40.0]'; a negative limit lies on the other
    side.

    Args:
      change: value and limits.

    Returns:
      The text.
    """
    value = change['value'] or 0.0
    side, sign = ('lower', -1) if value <= 0 else ('higher', 1)
    text = f'{abs(100 * value):.1f} % {side}'
    if change['low'] is None:
        return text
    limits = sorted(100 * sign * change[key] for key in ('low', 'high'))
    return f'{text} [{limits[0]:.1f}, {limits[1]:.1f}]'.replace('-', '−')


def against_simple(report: Mapping, method: str = 'sigma') -> str:
    """One sentence: which of the methods without a learned model the method beats in all three
    errors.

    Args:
      report: of `measure.evaluate`.
      method: name of the method.

    Returns:
      The sentence.
    """
    split_methods = report['splits'][headline_split(report)]['arms']
    better: list[str] = []
    worse: list[str] = []
    subject = method.capitalize()
    for name in (name for name in SIMPLE if name in split_methods):
        lost = [
            SPANS[k]
            for k in ERRORS
            if split_methods[method][k]['value'] >= split_methods[name][k]['value']
        ]
        (worse if lost else better).append(name + (f' ({join(lost)})' if lost else ''))
    parts = [f'{subject} is below {join(better)} in all three errors'] if better else []
    parts += (
        [f'it is not below {join(worse)}' if better else f'{subject} is not below {join(worse)}']
        if worse
        else []
    )
    return '; '.join(parts) + '.' if parts else ''


def join(words: Sequence[str]) -> str:
    """Words as a sentence lists them, such as 'a, b and c'.

    Args:
      words: at least one.

    Returns:
      The text.
    """
    return (
        words[0]
        if len(words) == 1
        else ', '.join(words[:-1]) + ' and ' + words[-1]
        if words
        else ''
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], mark: int | None = None) -> str:
    """An HTML table that scrolls sideways; the first column is text, the row `mark` stands out.
    Escapes nothing.

    Args:
      header: of the columns.
      rows: cells of each.
      mark: number of the row that stands out; None: none.

    Returns:
      HTML.
    """
    head = ''.join(f'<th>{cell}</th>' for cell in header)
    body = ''.join(
        f'<tr{" class=mark" if i == mark else ""}>'
        + ''.join(f'<td>{cell}</td>' for cell in row)
        + '</tr>'
        for i, row in enumerate(rows)
    )
    table = f'<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class=scroll>{table}</div>'


def methods_table(split: Mapping) -> str:
    """Every method: three errors, each with its change against the base and the interval of that
    change.

    Args:
      split: of the report.

    Returns:
      HTML.
    """
    names = list(split['arms'])
    rows = [
        [breakable(name)] + [error_cell(split['arms'][name][key], name) for key in ERRORS]
        for name in names
    ]
    return table(
        ['method', *(f'{key}<br><small>{SPANS[key]}</small>' for key in ERRORS)],
        rows,
        names.index('sigma'),
    )


def image(svg: str, caption: str) -> str:
    """An SVG as an embedded figure with a text for those who do not see it.

    Args:
      svg: of a figure.
      caption: also for those who do not see it.

    Returns:
      HTML.
    """
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{html.escape(caption)}" src="data:image/svg+xml;base64,{data}">'


def breakable(name: str) -> str:
    """A method's name that may break after '_' and before '+', for narrow screens.

    Args:
      name: of the method.

    Returns:
      HTML.
    """
    return html.escape(name).replace('_', '_<wbr>').replace('+', '<wbr>+')


def error_cell(error: Mapping, name: str) -> str:
    """An error with its change, such as '12.3' over '−20.0 %' over '[−25.1, −14.2]'; the base
    itself has no change.

    Args:
      error: value and change.
      name: of the method.

    Returns:
      HTML.
    """
    if name == 'pi05':
        return f'{number(error["value"])}<br><small>reference</small>'
    change = error['change']
    paint = {'lower': 'good', 'higher': 'bad'}.get(outcome(change), 'open')
    small = change_text(change['value'])
    if change['low'] is not None:
        small += (
            '<br>[' + ', '.join(change_text(change[key], unit='') for key in ('low', 'high')) + ']'
        )
    return f'{number(error["value"])}<br><small class={paint}>{small}</small>'


def change_text(change: float | None, unit: str = ' %') -> str:
    """A relative change as a signed percentage, or as a multiple of the base where it is ten times
    it or more.

    Args:
      change: relative; None: a dash.
      unit: after a percentage.

    Returns:
      The text.
    """
    if change is not None and change >= 9:
        return f'× {1 + change:.0f}'
    return percent(change).replace(' %', unit)


def paper_table(report: Mapping) -> str:
    """The paper's averages next to ours, Sigma and base.

    Args:
      report: of `measure.evaluate`.

    Returns:
      HTML.
    """
    rows = [
        [key, number(report['sigma'][key]), number(report['pi05_base'][key]), sigma, base]
        for key, (sigma, base) in PAPER.items()
    ]
    return table(
        ['key', 'sigma, ours', 'pi05_base, ours', 'Sigma, paper', 'pi05_base, paper'], rows
    )


def switch_table(report: Mapping) -> str:
    """Telepathy switch x adapter on one checkpoint, the headline split.

    Args:
      report: of `measure.evaluate`.

    Returns:
      HTML.
    """
    cells = report['telepathy_by_adapter'][headline_split(report)]
    rows = [
        [
            f'{switch.replace("_", " ")}, {use.replace("_", " ")}',
            *(number(errors[key]) for key in ERRORS),
        ]
        for switch, row in cells.items()
        for use, errors in row.items()
    ]
    return table(['switches', *ERRORS], rows)


def check_a_table(report: Mapping) -> str:
    """CHECK A of the paper: both groups read the same heads.

    Args:
      report: of `measure.evaluate`.

    Returns:
      HTML.
    """
    keys = ('heads_tensors', 'mean', 'std', 'rms')
    rows = [
        [group, *(number(values[key]) for key in keys)]
        for group, values in report['check_a'].items()
    ]
    return table(['group', *keys], [*rows, ['paper, both', '325', '0.002', '0.107', '0.107']])


def check_b_table(report: Mapping) -> str:
    """CHECK B of the paper, both groups in one table.

    Args:
      report: of `measure.evaluate`.

    Returns:
      HTML.
    """
    pairs = zip(report['check_b']['sigma'], report['check_b']['pi05_base'], strict=True)
    rows = [
        [str(s['batch'])]
        + [f'{number(s[key])}<br><small>{number(b[key])}</small>' for key in ERRORS]
        + [number(s['tau_l2']), number(s['sem_align'])]
        for s, b in pairs
    ]
    return table(
        [
            'batch',
            *(f'{key}<br><small>pi05_base below</small>' for key in ERRORS),
            'tau_l2',
            'sem_align',
        ],
        rows,
    )


def rates_table(split: Mapping) -> str:
    """Success and hard-sample rates, norm of tau and semantic alignment of every method.

    Args:
      split: of the report.

    Returns:
      HTML.
    """
    keys = ('success_rate', 'hard_sample_fraction', 'tau_l2', 'sem_align')
    return table(
        ['method', *keys],
        [
            [breakable(name), *(number(method.get(key)) for key in keys)]
            for name, method in split['arms'].items()
        ],
    )


def flat_table(values: Mapping[str, Any]) -> str:
    """Nested settings as dotted keys, one a row.

    Args:
      values: nested.

    Returns:
      HTML.
    """
    rows = [[html.escape(key), html.escape(text)] for key, text in flatten(values)]
    return table(['key', 'value'], rows)


def flatten(values: Mapping[str, Any], prefix: str = '') -> list[tuple[str, str]]:
    """Nested settings as pairs: {'a': {'b': 1}} -> [('a.b', '1')].

    Args:
      values: nested.
      prefix: before each key.

    Returns:
      The pairs.
    """
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f'{prefix}{key}.')
        else:
            rows.append((f'{prefix}{key}', value if isinstance(value, str) else json.dumps(value)))
    return rows
