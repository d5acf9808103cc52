"""Every row of every table holds the numbers of the method that it names: all numbers differ, and
each is looked up.
"""

import itertools
import re

import pytest
from rich.table import Table

from sigma_jax.cli import report as console
from sigma_jax.evaluation.metrics import ERRORS
from sigma_jax.evaluation.report import contrasts, tables, trials

METHODS = ('pi05', 'hold', 'sigma', 'sigma+adapter', 'no_tau')
NUMBERS = itertools.count(1)


def fresh():
    """Another number each time, four digits long, so that it reads in full."""
    return 1.0 + 0.001 * next(NUMBERS)


def error():
    return {
        'value': fresh(),
        'change': {'value': -fresh() / 10, 'low': -fresh() / 5, 'high': -fresh() / 50},
    }


def rows_of(html):
    """{row's name: its other cells}, without tags."""
    body = html.split('<tbody>')[1]
    found = {}
    for row in re.findall(r'<tr[^>]*>(.*?)</tr>', body):
        cells = [re.sub(r'<wbr>', '', cell) for cell in re.findall(r'<td>(.*?)</td>', row)]
        name, *others = [re.sub(r'<[^>]*>', ' ', cell).strip() for cell in cells]
        assert name not in found
        found[re.sub(r' +', ' ', name)] = others
    return found


def printed(table: Table):
    """The same of a table for the console."""
    columns = [list(column.cells) for column in table.columns]
    return {
        row[0]: [re.sub(r'\[/?[a-z]*\]', '', str(cell)) for cell in row[1:]]
        for row in zip(*columns, strict=True)
    }


def three(values):
    """What an error cell shows: value, change, limits."""
    change = values['change']
    said = [tables.number(values['value']), tables.percent(change['value'])]
    return said + [tables.change_text(change[key], unit='') for key in ('low', 'high')]


def methods():
    rates = ('success_rate', 'hard_sample_fraction', 'tau_l2', 'sem_align')
    return {
        name: {key: error() for key in ERRORS} | {rate: fresh() for rate in rates}
        for name in METHODS
    }


@pytest.fixture
def split():
    return {'arms': methods(), 'num_windows': 40, 'num_episodes': 4}


def holds(cells, errors):
    """Each of three cells shows its own error."""
    return all(
        all(part in cell for part in three(errors[key]))
        for cell, key in zip(cells, ERRORS, strict=True)
    )


def test_arms(split):
    rows = rows_of(tables.methods_table(split))
    assert list(rows) == list(METHODS)
    assert all(holds(rows[name], split['arms'][name]) for name in METHODS[1:])
    assert [cell.split()[0] for cell in rows['pi05']] == [
        tables.number(split['arms']['pi05'][key]['value']) for key in ERRORS
    ]


def test_the_marked_row_is_sigma_s(split):
    assert re.findall(r'<tr class=mark><td>(.*?)</td>', tables.methods_table(split)) == ['sigma']


def test_arms_on_the_console(split):
    rows = printed(console.split_table('test', split))
    for name in METHODS:
        errors = split['arms'][name]
        want = [tables.number(errors[key]['value']) for key in ERRORS]
        assert rows[name][::2] == want
        assert rows[name][1::2] == [
            '' if name == 'pi05' else tables.percent(errors[key]['change']['value'])
            for key in ERRORS
        ]


def test_rates(split):
    rows = rows_of(tables.rates_table(split))
    for name, method in split['arms'].items():
        keys = ('success_rate', 'hard_sample_fraction', 'tau_l2', 'sem_align')
        assert rows[name] == [tables.number(method[key]) for key in keys]


def test_switches():
    cells = {
        s: {a: {key: fresh() for key in ERRORS} for a in ('plain', 'adapted')}
        for s in ('tau_on', 'tau_off')
    }
    rows = rows_of(
        tables.switch_table(
            {'telepathy_by_adapter': {'test': cells}, 'splits': {'train': 0, 'test': 0}}
        )
    )
    for switch, by_use in cells.items():
        for use, errors in by_use.items():
            assert rows[f'{switch.replace("_", " ")}, {use}'] == [
                tables.number(errors[key]) for key in ERRORS
            ]


def checks():
    group = [
        {'batch': n} | {key: fresh() for key in (*ERRORS, 'tau_l2', 'sem_align')} for n in range(3)
    ]
    return [{key: fresh() if key != 'batch' else n for key, n in one.items()} for one in group]


def test_checks_and_the_paper_s_averages():
    report = {'check_b': {'sigma': checks(), 'pi05_base': checks()}}
    report['check_a'] = {
        g: dict(
            zip(
                ('heads_tensors', 'mean', 'std', 'rms'), (9, fresh(), fresh(), fresh()), strict=True
            )
        )
        for g in ('sigma', 'pi05_base')
    }
    report |= {group: {key: fresh() for key in tables.PAPER} for group in ('sigma', 'pi05_base')}
    rows = rows_of(tables.check_b_table(report))
    for n, cells in enumerate(rows[str(n)] for n in range(3)):
        ours, base = report['check_b']['sigma'][n], report['check_b']['pi05_base'][n]
        assert [cell.split() for cell in cells[:3]] == [
            [tables.number(x[key]) for x in (ours, base)] for key in ERRORS
        ]
        assert cells[3:] == [tables.number(ours[key]) for key in ('tau_l2', 'sem_align')]
    for group in ('sigma', 'pi05_base'):
        values = report['check_a'][group]
        said = [tables.number(values[key]) for key in ('heads_tensors', 'mean', 'std', 'rms')]
        assert (
            rows_of(tables.check_a_table(report))[group]
            == said
            == printed(console.check_a(report))[group]
        )
        keys = (*ERRORS, 'tau_l2', 'sem_align')
        for n, row in enumerate(report['check_b'][group]):
            assert printed(console.check_b(report, group))[str(n)] == [
                tables.number(row[key]) for key in keys
            ]
    for key, cells in rows_of(tables.paper_table(report)).items():
        ours = [tables.number(report[group][key]) for group in ('sigma', 'pi05_base')]
        assert cells == [*ours, *tables.PAPER[key]]


@pytest.fixture
def comparison():
    found = [
        {'arm': one, 'against': other} | {key: error()['change'] for key in ERRORS}
        for one, other in [
            *((name, 'pi05') for name in METHODS[1:]),
            ('sigma', 'no_tau'),
            ('sigma', 'hold'),
        ]
    ]
    of = {
        name: {key: {'value': fresh()} for key in ERRORS} | {'seeds': list(range(n))}
        for n, name in enumerate(METHODS)
    }
    return {
        'arms': of,
        'contrasts': found,
        'full': 'sigma',
        'no_tau': 'no_tau',
        'tuned': ['hold'],
        'ablations': ['no_tau'],
        'split': 'test',
    }


def test_arms_of_a_comparison(comparison):
    html = contrasts.methods_table(comparison)
    rows = rows_of(html)
    for n, name in enumerate(METHODS):
        assert rows[name][0] == (str(n) if n else '–')
        for cell, key in zip(rows[name][1:], ERRORS, strict=True):
            assert cell.split()[0] == tables.number(comparison['arms'][name][key]['value'])
            if name != 'pi05':
                change = contrasts.find(comparison, name, 'pi05')[key]
                assert all(part in cell for part in three({'value': 1.0, 'change': change})[1:])
    assert re.findall(r'<tr class=mark><td>(.*?)</td>', html) == ['sigma']


def test_contrasts(comparison):
    rows = rows_of(contrasts.contrast_table(comparison['contrasts'], 'no_tau'))
    shown = printed(console.comparison_table(comparison))
    for found in comparison['contrasts']:
        cells = rows[f'{found["arm"]} against {found["against"]}']
        for n, (cell, key) in enumerate(zip(cells, ERRORS, strict=True)):
            said = three({'value': 1.0, 'change': found[key]})[1:]
            assert all(part in cell for part in said)
            if (line := shown.get(f'{found["arm"]}\n  {found["against"]}')) is not None:
                assert all(part.removesuffix(' %') in line[n] for part in said)
    assert {'sigma\n  no_tau', 'sigma\n  pi05', 'sigma+adapter\n  pi05', 'sigma\n  hold'} <= set(
        shown
    )


def test_costs():
    keys = (
        'trainable_parameters',
        'steps',
        'training_windows',
        'flops_own',
        'flops_in_all',
        'flops_training',
    )
    costs = {name: {key: 1000 + next(NUMBERS) for key in keys} for name in METHODS}
    for name, cells in rows_of(contrasts.cost_table(costs)).items():
        cost = costs[name]
        assert [cells[n] for n in (0, 3, 4)] == [f'{cost[key]:,}' for key in keys[:3]]
        assert [cells[n] for n in (1, 2, 5)] == [
            contrasts.operations(cost[key]) for key in keys[3:]
        ]


def test_robustness():
    rows = [
        {
            'kind': 'noise',
            'level': n,
            'name': f'level {n}',
            'arms': {a: {k: error() for k in ERRORS} for a in METHODS},
        }
        for n in range(3)
    ]
    found = rows_of(trials.robustness_section({'rows': rows, 'base_samples': 5, 'split': 'test'}))
    shown = printed(console.robustness_table(rows))
    for row in rows:
        cells = found[f'noise: {row["name"]}' if row['level'] else row['name']]
        for cell, (key, name) in zip(
            cells, itertools.product(('mse_vec', 'mse_trj'), METHODS), strict=True
        ):
            errors = row['arms'][name][key]
            assert cell.split()[0] == tables.number(errors['value'])
            assert name == 'pi05' or tables.percent(errors['change']['value']) in cell
        assert shown[row['name']] == [
            tables.number(row['arms'][name]['mse_trj']['value']) for name in METHODS
        ]


def test_stress_and_the_adapter_s_sweep():
    def one(name):
        both = {method: {key: fresh() for key in ERRORS} for method in ('sigma', 'adapter')}
        return both | {'stress': name, 'mean_scale': fresh(), 'holds': True, 'gain_kept': {}}

    bounds = {'informative': 1.2, 'adapter': 1.05, 'gain_kept': 0.9}
    found = {
        'rows': [one('a'), one('b')],
        'without_stress': one('calm'),
        'bounds': bounds,
        'split': 'test',
    }
    rows = rows_of(trials.stress_section(found))
    for values in [*found['rows'], found['without_stress']]:
        cells = rows[values['stress']]
        for cell, key in zip(cells, ERRORS, strict=False):
            assert cell.split()[::2] == [
                tables.number(values[method][key]) for method in ('sigma', 'adapter')
            ]
        assert cells[3:] == [tables.number(values['mean_scale']), 'holds']
    worst = {
        v['stress']: [max(v[method].values()) for method in ('sigma', 'adapter')]
        for v in found['rows']
    }
    for line, (name, (plain, adapted)) in zip(trials.verdicts(found), worst.items(), strict=False):
        assert line.startswith(
            f'{name}: holds (plain Sigma {plain:.2f} × base, with adapter {adapted:.2f} × base'
        )
    sweep = [
        {'min_scale': fresh(), 'max_scale': fresh(), 'calibration': fresh(), 'test': fresh()}
        for _ in range(3)
    ]
    html = trials.sweep_section({'sweep': {'rows': sweep, 'chosen': 1}})
    said = rows_of(html)
    for row in sweep:
        first, *others = [
            tables.number(row[key]) for key in ('min_scale', 'max_scale', 'calibration', 'test')
        ]
        assert said[first] == others
    assert re.findall(r'<tr class=mark><td>(.*?)</td>', html) == [
        tables.number(sweep[1]['min_scale'])
    ]
