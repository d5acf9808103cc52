"""What is kept of an evaluation says what its report says."""

import json
import re

import pytest

from experiments import summary
from sigma_jax.evaluation.metrics import ERRORS
from sigma_jax.evaluation.report import contrasts, page
from tests.evaluation.report.test_contrasts import values  # noqa: F401


@pytest.fixture
def written(values, tmp_path):  # noqa: F811
    folder = tmp_path / 'report'
    folder.mkdir()
    (folder / summary.REPORT).write_text(json.dumps(values))
    (folder / summary.PAGE).write_text(page.render(values, {}))
    summary.write_summary(folder, tmp_path / 'results', 'tiny')
    return tmp_path / 'results'


def test_the_text_opens_with_the_verdict(written, values):  # noqa: F811
    text = (written / summary.NAME).read_text()
    assert text.split('\n\n')[1] == contrasts.telepathy_verdict(values['comparison'])
    assert (
        'Against its frozen base' in text and '## Robustness' in text and 'under stress' not in text
    )


def test_what_is_bold_excludes_zero(written, values):  # noqa: F811
    text = (written / summary.NAME).read_text()
    found = values['comparison']
    shown = contrasts.parts_of(found) + contrasts.references_of(found)
    sure = [c[key] for c in shown for key in ERRORS if c[key]['low'] > 0 or c[key]['high'] < 0]
    assert 0 < len(sure) < len(shown) * len(ERRORS)
    assert len(re.findall(r'\*\*[^*]*\*\*', text)) == len(sure)


def test_tables_are_whole_and_pictures_are_there(written, values):  # noqa: F811
    text = (written / summary.NAME).read_text()
    for block in re.findall(r'(?:^\|.*\n)+', text, re.MULTILINE):
        assert len({line.count('|') for line in block.splitlines()}) == 1
    assert sum(line.startswith('| ') for line in text.splitlines()) > len(
        values['comparison']['arms']
    )
    for name in re.findall(r'\]\((.*?)\)', text):
        assert (written / name).read_text().lstrip().startswith('<?xml')


def test_a_changed_source_is_reported():
    assert [summary.short('0123456789abcdef' + end) for end in ('', '+')] == [
        '0123456789ab',
        '0123456789ab+',
    ]
