"""No message and no log line holds a token, wherever it came from and however a server repeats
it.
"""

import logging

import huggingface_hub.file_download
import pytest

from sigma_jax.errors import UserError
from sigma_jax.hub import download
from sigma_jax.hub.client import Patience
from sigma_jax.hub.scrub import scrub
from tests.hub_server import REVISION, serve

FILES = {'config.json': b'{}', 'model.safetensors': b'weights'}
INFO = '/revision/v1'
# a server of one's own gives tokens of any form
PLAIN, USUAL = 'plainWordOfAServerOfOurOwn', 'hf_aVerySecretWord'


@pytest.fixture
def fetch(monkeypatch, tmp_path):
    """`download.fetch` into a cache of the test's own; who is logged in is the test's to say."""
    monkeypatch.delenv('HF_TOKEN', raising=False)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_DISABLE_PROGRESS_BARS', True)

    def run(endpoint, **options):
        template = endpoint + '/{repo_id}/resolve/{revision}/{filename}'
        monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', endpoint)
        monkeypatch.setattr(huggingface_hub.constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
        patience = Patience(tries=3, timeout=5, sleep=lambda _: None)
        return download.fetch('robots/tiny@v1', patience=patience, **options)

    return run


def given(token, how, monkeypatch, tmp_path):
    """Hands `token` over in one of the ways there are; arguments for `fetch`."""
    if how == 'environment':
        monkeypatch.setenv('HF_TOKEN', token)
    if how == 'env file':
        (tmp_path / 'own.env').write_text(f'HF_TOKEN={token}\n')
        return {'env_file': tmp_path / 'own.env'}
    if how == 'logged in':
        (tmp_path / 'token').write_text(token)
    return {}


@pytest.mark.parametrize(
    'said', ['not for {token}', 'header Authorization: Bearer {token} is refused', '{token}']
)
@pytest.mark.parametrize(
    ('token', 'how'),
    [
        (PLAIN, 'environment'),
        (PLAIN, 'env file'),
        (USUAL, 'environment'),
        (PLAIN, 'logged in'),
        (USUAL, 'logged in'),
    ],
)
def test_a_refusal_that_repeats_the_token_is_reported_without_it(
    fetch, monkeypatch, tmp_path, caplog, token, how, said
):
    options = given(token, how, monkeypatch, tmp_path)
    with serve(FILES) as (endpoint, asked, troubles), caplog.at_level(logging.INFO):
        troubles[INFO] = [(403, said.format(token=token))]
        with pytest.raises(UserError) as caught:
            fetch(endpoint, **options)
    assert any(token in headers.get('authorization', '') for _, _, headers in asked), (
        'it was sent, and came back'
    )
    assert token not in str(caught.value) and '<token>' in str(caught.value)
    assert (
        token not in caplog.text
        and caught.value.__cause__ is None
        and caught.value.__suppress_context__
    )


@pytest.mark.parametrize('token', [PLAIN, USUAL])
def test_a_copy_from_before_is_used_without_a_word_of_the_token(fetch, monkeypatch, caplog, token):
    monkeypatch.setenv('HF_TOKEN', token)
    with serve(FILES) as (endpoint, _, _), caplog.at_level(logging.INFO):
        first = fetch(endpoint)
    assert first.commit == REVISION
    monkeypatch.setattr(
        download,
        '_download',
        lambda *_: (_ for _ in ()).throw(UserError(f'cut while asking as {token}')),
    )
    assert fetch(endpoint) == first
    assert 'using the copy fetched before' in caplog.text and token not in caplog.text


@pytest.mark.parametrize(
    'text', ['denied to hf_somebodyElses1', 'Authorization: Bearer abc.DEF-123 is unknown']
)
def test_what_looks_like_a_token_is_hidden_whoever_it_belongs_to(text):
    got = scrub(text, ('another', None, ''))
    assert '<token>' in got and 'somebodyElses1' not in got and 'abc.DEF-123' not in got
    assert scrub('files of hf-hub, not Bearers') == 'files of hf-hub, not Bearers'
