"""Starting fast: programs kept in the config's folder, the user's own or nowhere; tracing
undisturbed.
"""

import gc

import jax
import pytest

from configs import defaults
from sigma_jax.training.compilation import enable_compilation_cache, gc_disabled

NAME = 'jax_compilation_cache_dir'


@pytest.fixture(autouse=True)
def restored():
    before = jax.config.values[NAME]
    jax.config.update(NAME, None)
    yield
    jax.config.update(NAME, before)


def test_the_default_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    enable_compilation_cache(defaults.get_config().compilation_cache)
    assert jax.config.values[NAME] == str(tmp_path / '.cache' / 'sigma_jax')


@pytest.mark.parametrize(('before', 'asked'), [(None, ''), ('/theirs', ''), ('/theirs', '/ours')])
def test_nothing_is_kept_unasked_and_the_users_own_cache_stays(before, asked):
    jax.config.update(NAME, before)
    enable_compilation_cache(asked)
    assert jax.config.values[NAME] == before


@pytest.mark.parametrize('before', [True, False])
def test_the_collector_is_as_it_was_after_the_block(before):
    (gc.enable if before else gc.disable)()
    try:
        with pytest.raises(KeyError), gc_disabled():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == before
    finally:
        gc.enable()
