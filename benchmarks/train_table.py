"""The tables that `benchmarks/train.py` prints."""

from typing import Any

from rich.table import Table

COLUMNS = {
    'per_s': '{:.1f}',
    'ms': '{:.1f}',
    'share': '{:.0%}',
    'peak_gib': '{:.2f}',
    'start_gib': '{:.2f}',
}
COLUMNS |= {'compile_s': '{:.1f}', 'cached_compile_s': '{:.1f}', 'busy': '{:.1%}'}
TITLES = {
    'per_s': 'windows/s',
    'peak_gib': 'peak GiB',
    'start_gib': 'weights, state GiB',
    'compile_s': 'compile s',
}
TITLES |= {'cached_compile_s': 'from cache s', 'share': 'of ceiling', 'busy': 'busy with data'}


def table(rows: list[dict]) -> Table:
    """One line a case; a dash where a number does not apply."""
    device = next((row['device'] for row in rows if row.get('device')), 'no device')
    out = Table(title=device)
    for row in (row for row in rows if 'size' in row):
        out.title = (
            f'{device}; {row["size"]}^3 bfloat16 product: {row["flops_per_s"] / 1e12:.1f} TFLOP/s'
        )
    shown = [
        key for key in COLUMNS if any(row.get(key) is not None for row in rows if 'kind' in row)
    ]
    for title in ['case', 'B', 'remat', *(TITLES.get(key, key) for key in shown)]:
        out.add_column(title, justify='left' if title in ('case', 'remat') else 'right')
    for row in (row for row in rows if 'kind' in row):
        cells = [cell(COLUMNS[key], row.get(key)) for key in shown]
        out.add_row(
            row['name'],
            str(row['batch']),
            row['remat'],
            *cells if 'error' not in row else ['failed'],
        )
    return out


def cell(form: str, value: Any) -> str:
    """A number as text."""
    return (
        form.format(value)
        if isinstance(value, (int, float))
        else '–'
        if value is None
        else 'failed'
    )


def profiles(rows: list[dict]) -> Table | None:
    """Milliseconds a step by kernel group, one column a case; None where nothing was profiled."""
    profiled = [row for row in rows if row.get('profile')]
    if not profiled:
        return None
    out = Table(
        'ms a step', *(f'{row["name"]} B={row["batch"]} {row["remat"]}' for row in profiled)
    )
    for name in dict.fromkeys(name for row in profiled for name in row['profile']['groups']):
        out.add_row(name, *(f'{row["profile"]["groups"].get(name, 0.0):.1f}' for row in profiled))
    out.add_row('step', *(f'{row["profile"]["step_ms"]:.1f}' for row in profiled))
    return out
