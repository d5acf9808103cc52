"""What `evaluate.py` prints: a table a split, arms x three errors with the change against pi05;
then the rest.
"""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, Group
from rich.table import Table

from sigma_jax.evaluation.metrics import ERRORS
from sigma_jax.evaluation.report.contrasts import (
    limits_text,
    parts_of,
    reading,
    references_of,
    telepathy_verdict,
)
from sigma_jax.evaluation.report.tables import change_text, number, outcome, size, verdict
from sigma_jax.evaluation.report.trials import verdicts

PAINT = {'lower': 'green', 'higher': 'red', 'open': 'default'}


def show(report: Mapping, console: Console, checks: bool = False) -> None:
    """Prints a report: tables first, then what they say in sentences.

    Args:
      report: of `measure.evaluate`.
      console: to print on.
      checks: whether CHECK A and CHECK B are shown too.
    """
    console.print(methods_tables(report))
    if comparison := report.get('comparison'):
        console.print(comparison_table(comparison))
    if checks:
        console.print(
            Group(check_a(report), *(check_b(report, group) for group in report['check_b']))
        )
    if report.get('robustness'):
        console.print(robustness_table(report['robustness']['rows']))
    for line in verdicts(report['stress']) if report.get('stress') else ():
        console.print(f'stress, {line}', highlight=False)
    sentences = (
        (telepathy_verdict(comparison), reading(comparison)) if comparison else (verdict(report),)
    )
    console.print(*sentences, highlight=False)


def narrow(title: str, *columns: str) -> Table:
    """A table without frame: the first column is text, the others are numbers.

    Args:
      title: of the table.
      *columns: their headings.

    Returns:
      The table.
    """
    table = Table(
        title=title,
        title_justify='left',
        title_style='bold',
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for n, column in enumerate(columns):
        table.add_column(column, justify='right' if n else 'left', no_wrap=True)
    return table


def comparison_table(comparison: Mapping) -> Table:
    """Contrasts of the full Sigma, or all where there is none, with their intervals.

    Args:
      comparison: section of the report.

    Returns:
      The table.
    """
    table = narrow(
        f'{comparison["split"]}: contrasts, change in % [95 %]', 'method, against', *ERRORS
    )
    for contrast in parts_of(comparison) + references_of(comparison) or comparison['contrasts']:
        cells = [
            f'[{PAINT[outcome(contrast[key])]}]{interval_text(contrast[key])}[/]' for key in ERRORS
        ]
        table.add_row(f'{contrast["arm"]}\n  {contrast["against"]}', *cells)
    return table


def interval_text(change: Mapping) -> str:
    """A change over its interval, such as '−20.0' over '(−25.1, −14.2)'.

    Args:
      change: value and limits.

    Returns:
      The text.
    """
    value = change_text(change['value'], unit='')
    return value if change['low'] is None else f'{value}\n({limits_text(change)})'


def check_a(report: Mapping) -> Table:
    """CHECK A of the paper: the heads, the same for both groups.

    Args:
      report: of `measure.evaluate`.

    Returns:
      The table.
    """
    keys = ('heads_tensors', 'mean', 'std', 'rms')
    table = narrow('CHECK A', 'group', *keys)
    for group, values in report['check_a'].items():
        table.add_row(group, *(number(values[key]) for key in keys))
    return table


def check_b(report: Mapping, group: str) -> Table:
    """CHECK B of the paper: single batches of one group.

    Args:
      report: of `measure.evaluate`.
      group: 'sigma' or the base.

    Returns:
      The table.
    """
    keys = (*ERRORS, 'tau_l2', 'sem_align')
    table = narrow(f'CHECK B: {group}', 'batch', *keys)
    for row in report['check_b'][group]:
        table.add_row(str(row['batch']), *(number(row[key]) for key in keys))
    return table


def robustness_table(rows: Sequence[Mapping]) -> Table:
    """mse_trj of each method under every perturbation.

    Args:
      rows: section of the report.

    Returns:
      The table.
    """
    table = narrow('robustness: mse_trj', 'observation', *rows[0]['arms'])
    for row in rows:
        table.add_row(
            row['name'], *(number(method['mse_trj']['value']) for method in row['arms'].values())
        )
    return table


def methods_tables(report: Mapping) -> Group:
    """One table a split, narrow enough for 80 columns.

    Args:
      report: of `measure.evaluate`.

    Returns:
      The tables.
    """
    return Group(*(split_table(name, values) for name, values in report['splits'].items()))


def split_table(name: str, values: Mapping) -> Table:
    """A row for each method: mean squared errors in raw units; a change whose interval excludes
    zero is coloured.

    Args:
      name: of the split.
      values: of the split in the report.

    Returns:
      The table.
    """
    table = Table(
        title=f'{name}: {size(values)}',
        title_justify='left',
        title_style='bold',
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column('method', no_wrap=True)
    for key in ERRORS:
        table.add_column(key, justify='right', no_wrap=True)
        table.add_column('', justify='right', no_wrap=True)
    for method, errors in values['arms'].items():
        cells = [cell for key in ERRORS for cell in error_cells(errors[key], method)]
        table.add_row(method, *cells, style='bold' if method == 'sigma' else None)
    return table


def error_cells(error: Mapping, method: str) -> tuple[str, str]:
    """An error and its change, such as '12.30' and '−20.0 %'; the base has no change.

    Args:
      error: value and change.
      method: name of the method.

    Returns:
      Two texts.
    """
    change = error['change']
    text = (
        '' if method == 'pi05' else f'[{PAINT[outcome(change)]}]{change_text(change["value"])}[/]'
    )
    return number(error['value']), text
