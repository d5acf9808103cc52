"""Results as tables on a console: an ablation's last losses, a forecast, a proof, a preparation."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from sigma_jax.ablations.stacked import mean_and_std
from sigma_jax.ablations.summary import SHOWN
from sigma_jax.api.conversion import Proof
from sigma_jax.convert.parity.verify import COSINE
from sigma_jax.training.memory_check import GIB, Forecast

if TYPE_CHECKING:
    from sigma_jax.api.serving_forecast import ServingForecast  # its modules need an extra


def ablation_table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """Mean and standard deviation over the seeds that went on to the end; names those that did
    not.

    Args:
      found: {row: [one dictionary a seed]}, as `AblationResult.losses`.

    Returns:
      The table, for a console.
    """
    out = Table(
        Column('row', no_wrap=True),
        *SHOWN,
        'seeds',
        caption='last training batch, mean ± standard deviation over seeds',
    )
    if any(entry['failed'] is not None for entries in found.values() for entry in entries):
        out.add_column('NaN')
    for name, entries in found.items():
        whole = [entry for entry in entries if entry['failed'] is None]
        cells = [
            '{:.4g} ± {:.2g}'.format(*mean_and_std(e[key] for e in whole if key in e))
            for key in SHOWN
        ]
        lost = ', '.join(
            f'seed {e["seed"]} at step {e["failed"]}' for e in entries if e['failed'] is not None
        )
        out.add_row(
            name, *cells, str(len(whole)), *([lost] if len(out.columns) > len(cells) + 2 else [])
        )
    return out


def show_forecast(forecast: Forecast, console: Console) -> None:
    """The parts of a step in GiB, what was assumed, and the verdict.

    Args:
      forecast: what `sj.forecast` gave.
      console: where it is printed.
    """
    table = Table('on the device', 'GiB')
    for name, size in forecast.parts.items():
        if size:
            table.add_row(name, f'{size / GIB:.2f}')
    table.add_row('all', f'{forecast.total / GIB:.2f}')
    console.print(table)
    for note in forecast.notes:
        console.print(note, highlight=False, soft_wrap=True)
    console.print(forecast.verdict, highlight=False, soft_wrap=True)


def show_serving_forecast(forecast: 'ServingForecast', console: Console) -> None:
    """What serving takes in GiB, the least time of a batch, what was assumed, and the verdict.

    Args:
      forecast: what `sj.forecast_serving` gave.
      console: where it is printed.
    """
    table = Table('on the device', 'GiB')
    for name, size in forecast.parts.items():
        table.add_row(name, f'{size / GIB:.2f}')
    table.add_row('all', f'{forecast.total / GIB:.2f}')
    console.print(table)
    times = ', '.join(
        f'{ms:.1f} ms for {batch}' if ms >= 0.1 else f'< 0.1 ms for {batch}'
        for batch, ms in forecast.least_ms.items()
    )
    for line in (f'at the least {times} at once', *forecast.notes, forecast.verdict):
        console.print(line, highlight=False, soft_wrap=True)


def show_proof(proof: Proof, console: Console) -> None:
    """How far our model is from the numbers of a public implementation, and the verdict.

    Args:
      proof: what `sj.verify` gave.
      console: where it is printed.
    """
    half = proof.dtype == 'bfloat16'
    table = Table(
        Column('quantity', no_wrap=True),
        'of',
        *(Column(x, justify='right') for x in ('max abs', 'max rel')),
    )
    if half:
        table.add_column('cosine', justify='right')
    table.add_column('verdict', no_wrap=True)
    for row in proof.rows:
        numbers = [
            (row.max_abs, '.2e'),
            (row.max_rel, '.2e'),
            *([(row.cosine, '.6f')] if half else []),
        ]
        cells = ('' if number is None else f'{number:{form}}' for number, form in numbers)
        verdict = row.verdict if row.differs else row.verdict.partition(' (')[0]
        table.add_row(
            row.quantity, row.source, *cells, verdict, style='red' if row.differs else None
        )
    console.print(table)
    limit = f'cosine >= {COSINE}' if half else f'max rel <= {proof.tolerance:g}'
    console.print(
        f'{proof.compared} of {len(proof.rows)} compared in {proof.dtype}, {limit}: '
        + ('equal' if proof.passed else 'NOT equal')
    )


def section_table(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    """Names and values under a title; texts are taken literally.

    Args:
      title: above the table.
      rows: (name, value) each.

    Returns:
      The table, for a console.
    """
    table = Table(
        title=title,
        title_justify='left',
        title_style='bold',
        box=box.SIMPLE,
        show_header=False,
        padding=0,
    )
    table.add_column(no_wrap=True, style='cyan')
    table.add_column(overflow='fold')
    for name, value in rows:
        table.add_row(Text(f'{name}  '), Text(value))
    return table
