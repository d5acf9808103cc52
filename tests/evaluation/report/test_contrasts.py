"""The page of a comparison answers its question in plain words, whichever way it falls."""

import base64
import copy
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from rich.console import Console

from sigma_jax.cli import report as console
from sigma_jax.evaluation import measure
from sigma_jax.evaluation.compare import contrasts as comparison
from sigma_jax.evaluation.compare.contrasts import PooledMethod
from sigma_jax.evaluation.measure import EvaluationConfig
from sigma_jax.evaluation.metrics import ERRORS
from sigma_jax.evaluation.replay import replay
from sigma_jax.evaluation.report import contrasts, forest, schema
from sigma_jax.evaluation.report.page import render
from tests import handmade
from tests.evaluation.report.test_page import Balance

EPISODE = np.repeat(np.arange(8), 4)


def method(level, seeds):
    rng = np.random.default_rng(0)
    base = np.exp(rng.normal(0, 0.5, 8))[EPISODE]
    errors = [
        {key: level * (1 + 0.01 * n) * base for key in ERRORS} for n in range(max(len(seeds), 1))
    ]
    return PooledMethod(errors, seeds, [np.linspace(level, 2 * level, 4)])


def compared(no_tau=1.5):
    """Sigma at 1, the base at 2, plain LoRA at 1.6."""
    levels = {
        'pi05': (2, ()),
        'pi05_lora': (1.6, (0, 1)),
        'pi05_lora_mean8': (1.4, (0, 1)),
        'sigma': (1, (0, 1)),
    }
    levels |= {
        'sigma+adapter': (1.01, (0, 1)),
        'no_tau': (no_tau, (0, 1)),
        'no_film': (1.0, (0, 1)),
    }
    ablations = ['no_film', 'no_tau']
    pairs = comparison.pairs(list(levels), ['pi05_lora'], ablations, 'sigma') + [
        ('sigma', 'pi05_lora_mean8')
    ]
    methods = {name: method(*of) for name, of in levels.items()}
    seeds = {
        name: {'role': name, 'seeds': [0, 1], 'gates': {}}
        for name in ('pi05_lora', 'sigma', *ablations)
    }
    seeds['no_tau']['gates'] = {'tau': 0.0, 'film': 1.0, 'tau_const': 0.0}
    seeds['no_film']['gates'] = {'ramp_speed': 'inf'}  # as JSON has it
    cost = {
        'trainable_parameters': 1899171,
        'steps': 150,
        'training_windows': 2400,
        'flops_own': 251600000,
    }
    facts = {
        'split': 'test',
        'full': 'sigma',
        'no_tau': 'no_tau',
        'tuned': ['pi05_lora'],
        'ablations': ablations,
    }
    facts |= {
        'rows': seeds,
        'compute': {'sigma': cost | {'flops_in_all': None}},
        'left_out': ['rows/x/seed0'],
    }
    return measure.jsonable(facts | comparison.compare(methods, EPISODE, pairs))


@pytest.fixture(scope='module')
def values():
    splits = {
        name: replay([handmade.make_batch(name)], handmade.run_windows, 2)
        for name in handmade.OFFSETS
    }
    rows = [
        {'kind': 'none', 'level': 0, 'name': 'as recorded'},
        {'kind': 'delayed_state', 'level': 2, 'name': '8 frames old'},
    ]
    error = {
        key: {'value': 2.0, 'change': {'value': -0.5, 'low': None, 'high': None}} for key in ERRORS
    }
    robust = {
        'split': 'test',
        'base_samples': 5,
        'rows': [row | {'arms': {'pi05': error, 'sigma': error}} for row in rows],
    }
    more = {'comparison': compared(), 'robustness': robust}
    return measure.evaluate(splits, EvaluationConfig(), {'w': np.ones(3)}, {'seed': 3}, more=more)


@pytest.fixture(scope='module')
def page(values):
    return render(values, {})


def test_the_page_opens_with_sentence_table_and_plot(page):
    body = page.split('<body>')[1]
    order = [
        'Does telepathy help?',
        'class=verdict>Yes:',
        '<table>',
        'src="data:image/svg+xml',
        '<h2>',
    ]
    places = [body.index(part) for part in order]
    assert places == sorted(places)
    assert "Sigma's error against the same model trained without telepathy is 33" in page.replace(
        '&#x27;', "'"
    )
    assert '<script' not in page and not re.findall(r'(?:src|href)="?(?!data:)[a-z]', page)


def test_the_page_is_well_formed_and_its_pictures_parse(page):
    balance = Balance()
    balance.feed(page)
    assert balance.wrong == [] and balance.open == []
    pictures = re.findall(r'data:image/svg\+xml;base64,([^"]*)', page)
    assert len(pictures) >= 8
    assert all(
        ElementTree.fromstring(base64.b64decode(picture)).tag.endswith('svg')
        for picture in pictures
    )


def test_an_endless_ramp_is_reported(page):
    assert 'ramp_speed = inf' in page


def test_every_arm_row_cost_and_trial_is_reported(page):
    for text in (
        'pi05_<wbr>lora_<wbr>mean8',
        'no_tau: tau = 0',
        '1,899,171',
        '251.6 MFLOP',
        'rows/x/seed0',
        '8 frames old',
    ):
        assert text in page, text


def changed(values, low, value, high, keys=ERRORS):
    found = copy.deepcopy(values)
    contrast = contrasts.find(found, 'sigma', 'no_tau')
    for key in keys:
        contrast[key] = {'value': value, 'low': low, 'high': high}
    return found


def test_negative_and_open_results_are_said_plainly():
    usual = compared()
    sentence = contrasts.telepathy_verdict(usual)
    assert sentence.startswith(
        'Yes: on 8 held-out test episodes (2 runs with telepathy, 2 runs without)'
    )
    assert sentence.endswith('(95 % intervals over seeds and episodes).') and not contrasts.reading(
        usual
    )
    hurts = changed(usual, 0.1, 0.2, 0.3)
    assert contrasts.telepathy_verdict(hurts).startswith('No, it hurts:')
    unknown = changed(usual, -0.1, 0.02, 0.15)
    assert contrasts.telepathy_verdict(unknown).startswith('Not shown:')
    assert 'no effect of telepathy is shown; effects from −10.0 % to +15.0 %' in contrasts.reading(
        unknown
    )
    mixed = changed(unknown, 0.1, 0.2, 0.3, ERRORS[:1])
    assert contrasts.telepathy_verdict(mixed).startswith('No, in part it hurts:')
    assert contrasts.reading(mixed).startswith(
        'Telepathy hurts for the first action, no effect is shown'
    )
    both = changed(mixed, -0.3, -0.2, -0.1, ERRORS[1:])
    assert contrasts.telepathy_verdict(both).startswith('Mixed:')


def test_without_the_decisive_row_nothing_is_claimed():
    values = compared() | {'no_tau': None}
    assert contrasts.telepathy_verdict(values).startswith(
        'Not tested: among these trainings there is no Sigma without'
    )
    assert contrasts.reading(values) == ''
    assert [c['against'] for c in contrasts.parts_of(compared())] == ['no_tau', 'no_film']


def test_one_seed_is_reported():
    values = compared()
    values['rows']['sigma']['seeds'] = [0]
    assert 'one seed tells no runs apart' in contrasts.telepathy_verdict(values)


def test_the_forest_s_scale_fits_what_it_shows():
    def found(size):
        change = {'value': 0.0, 'low': -size, 'high': size}
        return [{'arm': 'sigma', 'against': 'no_tau'} | dict.fromkeys(ERRORS, change)]

    assert [forest.edge_of(found(size)) for size in (0.01, 0.3, 1.6, 7.0)] == [2, 50, 200, 300]


def test_the_console_fits_80_columns(values):
    stream = io.StringIO()
    console.show(values, Console(width=80, file=stream), checks=True)
    text = stream.getvalue()
    assert '…' not in text and max(map(len, text.splitlines())) <= 80
    for part in ('CHECK A', 'CHECK B: pi05_base', 'as recorded', 'pi05_lora_mean8', 'Yes: on 8'):
        assert part in text


def test_the_report_follows_its_schema(values):
    assert schema.violations(values, schema.SCHEMA) == []
    alone = {key: value for key, value in values.items() if key not in ('comparison', 'robustness')}
    schema.check_report(alone)


def test_a_damaged_report_is_not_written(values):
    for path, value, words in (
        (('num_samples',), 'many', 'report.num_samples is a str and no integer'),
        (('comparison', 'contrasts'), {}, 'report.comparison.contrasts is a dict and no array'),
        (('schema_version',), 1, 'report.schema_version is 1 and not 2'),
        (('adapter', 'windows', 'test', 'scale'), None, 'report.adapter.windows.test.scale'),
    ):
        damaged = copy.deepcopy(values)
        place = damaged
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(ValueError, match=re.escape(words)):
            schema.check_report(damaged)
    with pytest.raises(ValueError, match='report.check_a is missing'):
        schema.check_report({key: value for key, value in values.items() if key != 'check_a'})
