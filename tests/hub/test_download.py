"""Files by hub id: the real client against a server on this machine that answers as a bad day
would.
"""

import datetime
import importlib
import logging
import os
import shutil
import socket
import subprocess
import sys

import huggingface_hub.file_download
import numpy as np
import pytest

from sigma_jax import trees
from sigma_jax.convert import checkpoint
from sigma_jax.errors import UserError
from sigma_jax.hub import download, listing
from sigma_jax.hub.client import (
    Patience,
    _patient,
    network_errors,
    patient_client,
    retry_after,
)
from sigma_jax.hub.scrub import scrub
from sigma_jax.hub.transfer import LARGE
from tests import golden
from tests.hub_server import REVISION, SIGNATURE, http_date, serve

SCRIPT = golden.DATA.parents[1] / 'convert_weights.py'
TOKEN = 'hf_aVerySecretWord'
BIG = np.random.default_rng(0).bytes(LARGE + 1001)
FILES = {
    'model.safetensors': BIG,
    'config.json': b'{"a": 1}',
    'pytorch_model.bin': b'never asked for',
}
DATASET = {
    'meta/info.json': b'{}',
    'meta/episodes/chunk-000/file-000.parquet': b'episodes',
    'data/chunk-000/file-000.parquet': b'rows',
    'data/chunk-000/evil.pkl': b'never asked for',
    'videos/observation.images.up/chunk-000/file-000.mp4': b'up',
    'videos/chunk-000/observation.images.up/episode_000000.mp4': b'up',
    'videos/observation.images.side/chunk-000/file-000.mp4': b'side',
    'README.md': b'never asked for',
}


@pytest.fixture
def waits() -> list[float]:
    """What the client waited, had it waited."""
    return []


@pytest.fixture
def fetch(monkeypatch, tmp_path, waits):
    """`download.fetch` from an endpoint into a cache of the test's own, without waiting."""
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_DISABLE_PROGRESS_BARS', True)

    def run(endpoint, name='robots/tiny@v1', *args, tries=4, **options):
        template = endpoint + '/{repo_id}/resolve/{revision}/{filename}'
        monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', endpoint)
        monkeypatch.setattr(huggingface_hub.constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
        return download.fetch(
            name, *args, patience=Patience(tries=tries, timeout=5, sleep=waits.append), **options
        )

    return run


INFO = '/revision/v1'
TREE = 'GET /api/models/robots/tiny/tree'
SMALL = f'GET /robots/tiny/resolve/{REVISION}/config.json'
LARGE_FILE = f'GET /robots/tiny/resolve/{REVISION}/model.safetensors'
TROUBLES = {
    'busy when the revision is asked': {INFO: [429, 503]},
    'errors when the files are listed': {TREE: [500, 502, 504]},
    'errors at every head': {'HEAD': [500, 429, 'refuse']},
    'small file': {SMALL: [500, (429, '3'), 'refuse']},
    'small file cut': {SMALL: ['cut', 'reset']},
    'large file': {LARGE_FILE: [(503, '2'), 500, 'refuse']},
    'large file cut': {LARGE_FILE: ['cut', 'reset', 'cut', 'reset']},
    'large file without ranges': {LARGE_FILE: ['reset', 'no ranges']},
    'large file with other bytes': {LARGE_FILE: ['other bytes']},
    'everything': {
        INFO: [429],
        TREE: ['refuse'],
        SMALL: [500],
        LARGE_FILE: ['cut', (429, '1'), 503, 'reset'],
    },
}


@pytest.mark.parametrize('name', TROUBLES)
def test_troubles_end_in_the_same_bytes(name, fetch, waits, caplog):
    with serve(FILES) as (endpoint, asked, troubles), caplog.at_level(logging.DEBUG):
        troubles |= {part: list(some) for part, some in TROUBLES[name].items()}
        fetched = fetch(endpoint)
        assert not any(troubles.values())
    assert (fetched.repo, fetched.commit) == ('robots/tiny', REVISION)
    assert sorted(path.name for path in fetched.path.iterdir()) == [
        'config.json',
        'model.safetensors',
    ]
    assert all(
        (fetched.path / name).read_bytes() == FILES[name]
        for name in ('config.json', 'model.safetensors')
    )
    assert not list(fetched.path.parents[1].rglob('*.incomplete'))
    assert waits and TOKEN not in caplog.text
    tokens = [
        headers.get('authorization', headers.get('Authorization'))
        for _, path, headers in asked
        if 'tiny' in path
    ]
    assert set(tokens) == {f'Bearer {TOKEN}'}
    assert not any('.bin' in path for _, path, _ in asked)
    if name == 'large file without ranges':  # what comes whole replaces what was there
        assert sum(f'{kind} {path}' == LARGE_FILE for kind, path, _ in asked) == 2


def test_a_cut_file_goes_on_where_it_stopped_in_this_run_and_the_next(fetch, waits):
    with serve(FILES) as (endpoint, asked, troubles):
        troubles[LARGE_FILE] = ['reset', 500, 500, 500, 500]
        with pytest.raises(UserError, match='what has been fetched is kept'):
            fetch(endpoint)
        before = len(asked)
        fetched = fetch(endpoint)
    starts = [
        headers.get('Range')
        for kind, path, headers in asked
        if kind == 'GET' and 'safetensors' in path
    ]
    half = f'bytes={len(BIG) // 2}-'
    assert starts[:2] == [None, half] and starts[-1] == half
    assert sum('safetensors' in path and kind == 'GET' for kind, path, _ in asked[before:]) == 1
    assert (fetched.path / 'model.safetensors').read_bytes() == BIG


def test_it_waits_as_long_as_it_is_asked_to_and_longer_after_each_failure(fetch, waits):
    with serve(FILES) as (endpoint, _, troubles):
        troubles[TREE] = [(429, '7'), (503, http_date(40)), 500, 500]
        fetch(endpoint, tries=5)
    assert 7 <= waits[0] <= 8 and 35 < waits[1] <= 41
    assert 2 <= waits[2] <= 4 <= waits[3] <= 8  # 1, 2, 4, 8 s, each drawn from its upper half
    patience = Patience()
    assert (
        len({patience.seconds(3) for _ in range(9)}) > 1
        and patience.seconds(30) <= patience.longest
    )


@pytest.mark.parametrize('trouble', [500, 429, 'refuse', 'reset'])
@pytest.mark.parametrize('part', [INFO, TREE, SMALL, LARGE_FILE])
def test_it_gives_up_with_a_sentence(part, trouble, fetch, waits):
    with serve(FILES) as (endpoint, asked, troubles):
        # half of what is left each time: it would end
        progress = part == LARGE_FILE and trouble == 'reset'
        troubles[part] = ['other bytes' if progress else trouble] * 99
        with pytest.raises(UserError) as caught:
            fetch(endpoint, tries=3)
    text = str(caught.value)
    assert (
        text.startswith('expected robots/tiny@v1 on the hub, got "expected') and ' 3 times' in text
    )
    assert '\n' not in text and TOKEN not in text and caught.value.__cause__ is None
    assert len(waits) == 2 and sum(part in f'{kind} {path}' for kind, path, _ in asked) <= 6


def test_too_long_a_wait_is_reported_instead(fetch, waits):
    with serve(FILES) as (endpoint, _, troubles):
        troubles[INFO] = [(429, '86400')]
        with pytest.raises(
            UserError,
            match='429 Too Many Requests" with 86400 s to wait; run the same command again',
        ):
            fetch(endpoint)
    assert not waits


def test_of_a_data_set_come_tables_and_the_wanted_videos(fetch):
    with serve(DATASET) as (endpoint, asked, _):
        fetched = fetch(
            endpoint, 'robots/tiny', 'dataset', download.dataset_files(['observation.images.up'])
        )
        every = fetch(endpoint, 'robots/tiny', 'dataset', download.dataset_files())
    assert fetched.path == every.path and '/datasets/robots/tiny/' in asked[-1][1]
    names = {
        path.relative_to(every.path).as_posix() for path in every.path.rglob('*') if path.is_file()
    }
    assert names == {name for name in DATASET if DATASET[name] != b'never asked for'}
    order = [
        path.partition(REVISION)[2]
        for kind, path, _ in asked
        if kind == 'GET' and '/resolve/' in path
    ]
    assert 'side' in order[-1] and not any('side' in name for name in order[:-1])


def test_offline_uses_what_is_there_and_says_what_is_not(fetch, monkeypatch, caplog, waits):
    with serve(FILES) as (endpoint, asked, _):
        first = fetch(endpoint)
        by_commit = len(asked)
        assert fetch(endpoint, f'robots/tiny@{REVISION}') == first and len(asked) == by_commit
    assert (
        fetch(endpoint) == first
        and 'using the copy fetched before' in caplog.text
        and len(waits) == 1
    )
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    assert fetch(endpoint) == first
    with pytest.raises(UserError, match='HF_HUB_OFFLINE forbids to ask the hub'):
        fetch(endpoint, 'robots/other')


def test_answers_that_say_no_are_not_asked_again(fetch, waits):
    with serve(FILES) as (endpoint, asked, troubles):
        troubles[INFO] = [403]
        with pytest.raises(
            UserError, match='check the id and its licence, log in, or name a local path'
        ) as caught:
            fetch(endpoint)
        assert TOKEN not in str(caught.value)
        with pytest.raises(UserError, match='expected files like'):
            fetch(endpoint, 'robots/tiny@v1', 'model', ('*.npz',))
    assert not waits and sum('revision' in path for _, path, _ in asked) == 2


@pytest.mark.parametrize('part', [SMALL, LARGE_FILE])
def test_signed_addresses_are_in_no_message(part, fetch, capfd, caplog):
    """A file that the hub has elsewhere, at an address that has expired: whose signature nobody
    needs to see.
    """
    with serve(FILES) as (endpoint, asked, troubles):
        troubles[part] = ['signed'] * 9
        with pytest.raises(UserError, match='expected robots/tiny@v1 on the hub, got "') as caught:
            fetch(endpoint)
        assert any(path.startswith('/elsewhere') for _, path, _ in asked)
    said = ''.join([str(caught.value), *capfd.readouterr(), caplog.text])
    assert '403' in str(caught.value) and (
        part == SMALL or '/elsewhere/x?<hidden>' in str(caught.value)
    )
    assert SIGNATURE.partition('=')[2] not in said and TOKEN not in said
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


@pytest.mark.parametrize('token', ['a-log-in.of_the_library', 'hf_loggedInBefore'])
@pytest.mark.parametrize('part', [INFO, TREE, SMALL, LARGE_FILE])
def test_the_token_of_a_log_in_is_in_no_message(
    part, token, fetch, monkeypatch, tmp_path, capfd, caplog
):
    """`hf auth login` leaves it in a file, which the library finds by itself; a server may send it
    back.
    """
    monkeypatch.delenv('HF_TOKEN')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'token').write_text(token + '\n')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
    with serve(FILES) as (endpoint, asked, troubles):
        troubles[part] = [403] * 9
        with pytest.raises(UserError, match='check the id and its licence') as caught:
            fetch(endpoint)
    sent = [headers.get('authorization', headers.get('Authorization')) for _, _, headers in asked]
    assert f'Bearer {token}' in sent
    assert token not in ''.join([str(caught.value), *capfd.readouterr(), caplog.text])


SECRETS = {
    'GET https://a.b/c/d.bin?X-Amz-Signature=s3cr3t&Expires=9 failed': 'GET '
    'https://a.b/c/d.bin?<hidden> '
    'failed',
    "for url 'https://a.b/c?Policy=s3cr3t&Key-Pair-Id=K'\nsee": 'for url '
    "'https://a.b/c?<hidden>'\nsee",
    'proxy http://me:s3cr3t@proxy:8080/ refused': 'proxy http://<log-in>@proxy:8080/ refused',
    'authorization: Bearer s3cr3t.s3cr3t-s3cr3t==': 'authorization: Bearer <token>',
    'said hf_another, or s3cr3t': 'said <token>, or <token>',
    'is it /there? See HF_TOKEN, https://a.b/c.': 'is it /there? See HF_TOKEN, https://a.b/c.',
}


@pytest.mark.parametrize('text', SECRETS)
def test_secrets_are_taken_out_and_nothing_else(text):
    assert scrub(text, ['s3cr3t', None, '']) == SECRETS[text]


def test_what_the_library_logs_is_scrubbed_too(capfd):
    import huggingface_hub

    log = logging.getLogger('huggingface_hub.file_download')
    library = logging.getLogger('huggingface_hub')
    handler = logging.StreamHandler()
    library.addHandler(handler)
    try:
        with patient_client(huggingface_hub, Patience(), ('s3cr3t',)):
            log.warning(
                'Error while downloading from %s by %s', f'https://a.b/c?{SIGNATURE}', 's3cr3t'
            )
    finally:
        library.removeHandler(handler)
    assert (
        'https://a.b/c?<hidden> by <token>' in (said := capfd.readouterr().err)
        and SIGNATURE not in said
    )
    assert not handler.filters


@pytest.fixture(params=['this version', 'one that asks nothing'])
def library(request, monkeypatch):
    """huggingface_hub, and as it was up to 1.20: any folder of a commit is taken for the whole."""
    if request.param == 'one that asks nothing':
        module = importlib.import_module('huggingface_hub._snapshot_download')
        monkeypatch.setattr(
            module, '_raise_if_incomplete_snapshot', lambda **_: None, raising=False
        )
        monkeypatch.setattr(module, 'write_tree_cache', lambda *_, **__: None, raising=False)
    return request.param


def test_some_of_the_files_are_not_taken_for_all(library, fetch, monkeypatch):
    tables, everything = (download.TABLES, download.dataset_files())
    with serve(DATASET) as (endpoint, asked, _):
        name = f'robots/tiny@{REVISION}'
        first = fetch(endpoint, name, 'dataset', tables)
        monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
        assert fetch(endpoint, name, 'dataset', tables) == first
        with pytest.raises(UserError, match='got none, not all of them, or nothing that says so'):
            fetch(endpoint, name, 'dataset', everything)
        monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
        before = len(asked)
        whole = fetch(endpoint, name, 'dataset', everything)
        assert whole == first and any('videos' in path for _, path, _ in asked[before:])
        after = len(asked)
        assert fetch(endpoint, name, 'dataset', everything) == whole and len(asked) == after
    video = next(whole.path.rglob('file-000.mp4'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    video.resolve().write_bytes(b'')
    with pytest.raises(UserError, match='not all of them'):
        fetch(endpoint, name, 'dataset', everything)


def test_a_cache_of_which_nothing_is_known_is_not_taken_for_whole(library, fetch, monkeypatch):
    """As an older library, or another program, leaves one."""
    with serve(FILES) as (endpoint, _, _troubles):
        path = fetch(endpoint).path
        for folder in (listing.FOLDER, listing.THEIRS):
            shutil.rmtree(path.parents[1] / folder, ignore_errors=True)
        monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
        with pytest.raises(UserError, match='or nothing that says so; .*or name a local path'):
            fetch(endpoint)
        monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
        assert fetch(endpoint).path == path
        monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
        assert fetch(endpoint).path == path


def test_token_from_the_environment_or_an_env_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('HF_TOKEN', raising=False)
    assert download.read_token() is None
    (tmp_path / 'sigma.env').write_text('# a comment\nOTHER=1\nexport HF_TOKEN="from_sigma"\n')
    assert download.read_token() == 'from_sigma'
    (tmp_path / '.env').write_text('HF_TOKEN = from_env\n')
    (tmp_path / 'other').write_text("HF_TOKEN='from_other'\n")
    assert download.read_token() == 'from_env' and download.read_token('other') == 'from_other'
    monkeypatch.setenv('HF_TOKEN', 'from_outside\n')
    assert download.read_token('other') == 'from_outside'
    monkeypatch.setenv('HF_TOKEN', 'two\nlines')
    with pytest.raises(UserError) as caught:
        download.read_token()
    assert 'one word' in str(caught.value) and 'lines' not in str(caught.value)
    monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(UserError, match='expected an env file at nowhere'):
        download.read_token('nowhere')


def test_retry_after_in_all_its_spellings():
    now = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
    dates = {
        'Thu, 01 Jan 2026 12:00:30 GMT': 30,
        'Thu, 01 Jan 2026 11:00:00 GMT': 0,
        '12': 12,
        '1.5': 1.5,
    }
    assert {value: retry_after({'Retry-After': value}, now) for value in dates} == dates
    assert retry_after({'RateLimit': '"api";r=0;t=55'}) == 55
    assert retry_after({'Retry-After': 'soon'}) is None and retry_after({}) is None


@pytest.mark.parametrize('name', ['nowhere', 'a/b/c', '/tmp/nowhere', 'runs/base.safetensors'])
def test_what_is_neither_a_path_nor_a_hub_id(name):
    with pytest.raises(
        UserError,
        match=f'expected a checkpoint at {name}, got no such file or folder, nor a hub id',
    ):
        download.local_path(name)


def test_a_checkpoint_is_converted_by_hub_id(tmp_path):
    weights, config = (
        (golden.FIXTURE / name).read_bytes() for name in ('lerobot.safetensors', 'config.json')
    )
    with serve({'model.safetensors': weights, 'config.json': config}) as (endpoint, _, troubles):
        troubles[LARGE_FILE] = [(429, '0')]
        settings = {
            'HF_ENDPOINT': endpoint,
            'HF_HOME': str(tmp_path / 'home'),
            'JAX_PLATFORMS': 'cpu',
        }
        environment = os.environ | settings | {'no_proxy': '127.0.0.1', 'HF_TOKEN': TOKEN}
        command = [
            sys.executable,
            str(SCRIPT),
            '--checkpoint=robots/tiny@v1',
            f'--out={tmp_path / "out"}',
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 and TOKEN not in done.stderr + done.stdout, done.stderr
    want = trees.digest(checkpoint.load(golden.FIXTURE / 'lerobot.safetensors').params)
    assert trees.digest(checkpoint.load(tmp_path / 'out').params) == want


def test_a_name_that_cannot_be_looked_up_is_not_waited_for(monkeypatch):
    """As where there is no network; and the sentence says that no folder is here either."""
    waits: list[float] = []

    client = importlib.import_module('huggingface_hub.utils._http').default_client_factory()
    lost = network_errors(client)[0]

    def offline(*_, **__):
        raise lost('offline') from socket.gaierror(-2, 'Name or service not known')

    monkeypatch.setattr(client, 'send', offline)
    asking = _patient(client, Patience(tries=8, sleep=waits.append))
    with pytest.raises(UserError, match='expected GET /api from the hub, got .* 3 times'):
        asking.send(client.build_request('GET', 'https://hub/api'))
    assert len(waits) == 2

    def refused(_):
        raise UserError('expected GET /api from the hub, got nothing; look at the connection')

    monkeypatch.setattr(download, 'fetch', refused)
    with pytest.raises(UserError, match='a checkpoint at owner/name, got no such file or folder'):
        download.local_path('owner/name')
