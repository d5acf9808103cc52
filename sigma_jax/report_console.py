"""The tables that `evaluate.py` prints: a table a split, arms x three errors with the change against pi05."""

from collections.abc import Mapping

from rich import box
from rich.console import Group
from rich.table import Table

from sigma_jax.metrics import ERRORS
from sigma_jax.report_tables import change_text, number, outcome, size

PAINT = {'lower': 'green', 'higher': 'red', 'open': 'default'}


def arms_tables(report: Mapping) -> Group:
    """One table a split, narrow enough for 80 columns."""
    return Group(*(split_table(name, values) for name, values in report['splits'].items()))


def split_table(name: str, values: Mapping) -> Table:
    """A row an arm: mean squared errors in raw units; a change whose interval excludes zero is coloured."""
    table = Table(
        title=f'{name}: {size(values)}', title_justify='left', title_style='bold', box=box.SIMPLE_HEAD, padding=0
    )
    table.add_column('arm', no_wrap=True)
    for key in ERRORS:
        table.add_column(key, justify='right', no_wrap=True)
        table.add_column('', justify='right', no_wrap=True)
    for arm, errors in values['arms'].items():
        cells = [cell for key in ERRORS for cell in error_cells(errors[key], arm)]
        table.add_row(arm, *cells, style='bold' if arm == 'sigma' else None)
    return table


def error_cells(error: Mapping, arm: str) -> tuple[str, str]:
    """'12.30' and '−20.0 %'; the base without a change."""
    change = error['change']
    text = '' if arm == 'pi05' else f'[{PAINT[outcome(change)]}]{change_text(change["value"])}[/]'
    return number(error['value']), text
