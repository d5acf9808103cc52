"""Trained policies that several files open."""

import pytest

from tests.trained_runs import make_rows


@pytest.fixture(scope='session')
def rows(small_run, tmp_path_factory):
    """See `make_rows`; to be copied by who changes them."""
    folder = tmp_path_factory.mktemp('trained') / 'rows'
    make_rows(small_run, folder)
    return folder
