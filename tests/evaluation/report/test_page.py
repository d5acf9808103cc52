"""The page says what the numbers say, loads nothing, and survives missing parts."""

import base64
import copy
import io
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from sigma_jax.cli import report as console
from sigma_jax.evaluation import measure
from sigma_jax.evaluation.measure import EvaluationConfig
from sigma_jax.evaluation.replay import replay
from sigma_jax.evaluation.report import figures, tables
from sigma_jax.evaluation.report.page import read_log, render
from tests import handmade

VOID = {'meta', 'img', 'br', 'wbr'}


def make_log(steps=120):
    step = np.arange(steps)
    names = (
        'loss',
        'L_act',
        'L_sem',
        'L_int',
        'L_tau',
        'L_act_hard',
        'w_sem',
        'w_int',
        'w_tau',
        'hard_ratio',
        'tau_rms',
    )
    return {'step': step} | {name: np.cos(step / (i + 5)) for i, name in enumerate(names)}


@pytest.fixture(scope='module')
def values():
    splits = {
        name: replay([handmade.make_batch(name)], handmade.run_windows, 2)
        for name in handmade.OFFSETS
    }
    facts = {
        'seed': 3,
        'test_reads': 1,
        'config': {'data': {'observation': 'first'}, 'loss': {'text': '<b>'}},
    }
    return measure.evaluate(splits, EvaluationConfig(), {'w': np.ones(3)}, facts, ['pan', 'lift'])


@pytest.fixture(scope='module')
def page(values):
    return render(values, make_log())


class Balance(HTMLParser):
    """Collects tags that are closed in the wrong order."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attrs):
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def with_change(values, key, low, value, high):
    values = copy.deepcopy(values)
    values['splits']['test']['arms']['sigma'][key]['change'] = {
        'value': value,
        'low': low,
        'high': high,
    }
    return values


def test_verdict_states_the_known_result(values):
    sentence = tables.verdict(values)
    assert sentence.startswith(
        "Yes: on 2 held-out test episodes, Sigma's error against its frozen base is"
    )
    assert sentence.count('75.0 % lower [75.0, 75.0]') == 3
    assert sentence.endswith('(95 % intervals over episodes).')


def test_verdict_turns_with_the_evidence(values):
    open_one = with_change(values, 'mse_vec', -0.1, 0.05, 0.2)
    assert tables.verdict(open_one).startswith('In part:')
    assert '5.0 % higher [−10.0, 20.0] for the first action' in tables.verdict(open_one)
    worse = values
    for key in ('mse_vec', 'mse_chk', 'mse_trj'):
        worse = with_change(worse, key, 0.1, 0.2, 0.3)
    assert tables.verdict(worse).startswith('No:')
    unknown = values
    for key in ('mse_vec', 'mse_chk', 'mse_trj'):
        unknown = with_change(unknown, key, None, -0.2, None)
    assert tables.verdict(unknown).startswith('Not shown:')


@pytest.mark.parametrize(
    ('low', 'value', 'high', 'said'),
    [
        (-0.3, -0.2, -0.1, 'lower'),
        (-0.3, -0.1, 0.1, 'open'),
        (-0.1, 0.1, 0.3, 'open'),
        (0.1, 0.2, 0.3, 'higher'),
    ]
    + [(None, -0.2, None, 'open'), (-0.1, 0.0, 0.0, 'open'), (0.0, 0.0, 0.1, 'open')],
)
def test_only_an_interval_without_zero_shows_a_side(values, low, value, high, said):
    assert tables.outcome({'low': low, 'value': value, 'high': high}) == said
    changed = with_change(values, 'mse_vec', low, value, high)
    everywhere = {
        key: changed['splits']['test']['arms']['sigma']['mse_vec']['change']
        for key in ('a', 'b', 'c')
    }
    words = {'lower': 'Yes:', 'higher': 'No:', 'open': 'Not shown:'}
    assert tables.answer(everywhere.values()) == words[said]


def test_without_test_the_sentence_does_not_claim_it(values):
    values = copy.deepcopy(values)
    del values['splits']['test']
    assert 'calibration (not test)' in tables.verdict(values)


def test_simple_arms_are_named_where_they_win(values):
    """mse_vec of test: Sigma 1.05, the bias fit 1.6, hold 4."""
    assert tables.against_simple(values) == (
        'Sigma is below hold, mean and pi05_bias in all three errors.'
    )
    values = copy.deepcopy(values)
    values['splits']['test']['arms']['hold']['mse_vec']['value'] = 0.1
    assert tables.against_simple(values).endswith('it is not below hold (first action).')


def test_page_loads_nothing_and_is_small(page):
    assert not re.findall(r'(?:src|href)="?(?!data:)[a-z]', page)
    assert 'http' not in re.sub(r'data:[^"]*', '', page)
    assert '<script' not in page
    assert len(page.encode()) < 5e6
    assert 'width=device-width' in page


def test_page_is_well_formed(page):
    balance = Balance()
    balance.feed(page)
    assert balance.wrong == []
    assert balance.open == []


def test_pictures_are_svg_that_parse(page):
    pictures = re.findall(r'data:image/svg\+xml;base64,([^"]*)', page)
    assert len(pictures) == 6
    for picture in pictures:
        assert ElementTree.fromstring(base64.b64decode(picture)).tag.endswith('svg')


def test_page_shows_the_known_numbers(page):
    for text in (
        '4.200',
        '−75.0 %',
        'CHECK A',
        'CHECK B',
        'Times the test split of this run was read: 1.',
        '79.03',
    ):
        assert text in page
    assert 'definitions are ours' in page and 'windows that it trained on' in page
    assert '&lt;b&gt;' in page and '<b>' not in page


def test_page_survives_missing_parts(values):
    values = copy.deepcopy(values)
    values['adapter'] = None
    values['provenance'] = {}
    page = render(values, {})
    assert 'No training log' in page
    assert 'Adapter scale' not in page


def test_the_same_report_gives_the_same_page(values, page):
    assert render(values, make_log()) == page


def test_log_is_read_with_gaps(tmp_path):
    path = tmp_path / 'train_log.csv'
    path.write_text('step,loss,tau_rms\n0,2.5,0.1\n10,1.5,\n')
    log = read_log(path)
    assert log['loss'].tolist() == [2.5, 1.5]
    assert np.isnan(log['tau_rms'][1])
    assert read_log(tmp_path / 'absent.csv') == {}


def test_overlapping_windows_are_not_drawn_twice():
    assert figures.disjoint(np.asarray([0, 4, 8, 16, 40]), 16) == [0, 3, 4]


def test_numbers_read_well():
    assert [tables.number(x) for x in (12.0, 203.05, 0.069, None, 7)] == [
        '12.00',
        '203.1',
        '0.06900',
        '–',
        '7',
    ]
    assert tables.change_text(-0.2) == '−20.0 %'
    assert tables.change_text(44.0) == '× 45'


def test_console_tables_hold_every_arm_in_80_columns(values):
    stream = io.StringIO()
    Console(width=80, file=stream).print(console.methods_tables(values))
    text = stream.getvalue()
    for name in values['splits']['test']['arms']:
        assert name in text
    assert re.search(r'sigma +1.050 +−75.0 %', text)
    assert '…' not in text
    assert max(map(len, text.splitlines())) <= 80
