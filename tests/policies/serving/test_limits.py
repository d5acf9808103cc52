"""Who may ask, and how often."""

import datetime
import socket
import ssl
import subprocess

import pytest
from websockets.exceptions import InvalidMessage

from sigma_jax.errors import UserError
from sigma_jax.policies.serving import limits
from sigma_jax.policies.serving.limits import Rate, check_key, is_key, is_loopback, tls_context
from sigma_jax.policies.serving.openpi.server import OpenpiSettings
from tests.policies.acting import ManyRobots, observation
from tests.policies.serving.openpi.served import serving


@pytest.mark.parametrize(
    ('host', 'alone'),
    [
        ('127.0.0.1', True),
        ('127.8.0.1', True),
        ('::1', True),
        ('localhost', True),
        ('0.0.0.0', False),
        ('::', False),
        ('', False),
        ('192.0.2.1', False),
    ],
)
def test_addresses_of_this_machine_alone(host, alone):
    assert is_loopback(host) is alone
    check_key(host, 'key')
    if alone:
        check_key(host, '')
    else:
        with pytest.raises(UserError, match='expected a key for what others reach'):
            check_key(host, '')


def test_a_name_is_what_all_its_addresses_are(monkeypatch):
    def both(*_, **__):
        return [(2, 1, 6, '', (address, 0)) for address in ('127.0.0.1', '192.0.2.1')]

    monkeypatch.setattr(socket, 'getaddrinfo', both)
    assert not is_loopback('this-machine')


def test_a_host_that_is_none():
    with pytest.raises(UserError, match="expected a host to listen at, got 'no such host'"):
        is_loopback('no such host')


@pytest.mark.parametrize(
    ('sent', 'right'),
    [('Api-Key k', True), ('Api-Key K', False), ('api-key k', False), ('k', False), ('', False),
     (None, False), ('Api-Key kk', False), ('Api-Key ä', False)],
)  # fmt: skip
def test_keys(sent, right):
    assert is_key(sent, 'k') is right and is_key(sent, '')


def test_a_rate_allows_a_burst_and_then_so_many_a_second(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(limits.time, 'monotonic', lambda: now[0])

    def taken(rate, tries):
        count = 0
        for _ in range(tries):
            try:
                rate.take()
                count += 1
            except UserError:
                pass
        return count

    rate, free, slow = Rate(10), Rate(0), Rate(0.5)
    assert taken(rate, 50) == 10
    now[0] += 0.35
    assert taken(rate, 50) == 3
    now[0] += 1000
    assert taken(rate, 50) == 10 and taken(free, 500) == 500
    assert taken(slow, 5) == 1  # more than two seconds passed, and one may come at once
    now[0] += 1
    assert taken(slow, 5) == 0
    now[0] += 1
    assert taken(slow, 5) == 1


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    """A certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp('tls')
    files = folder / 'cert.pem', folder / 'key.pem'
    command = ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2']
    command += ['-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1']
    command += ['-out', str(files[0]), '-keyout', str(files[1])]
    subprocess.run(command, check=True, capture_output=True)
    return files


def test_tls_is_spoken(pair, small_run):
    certificate, key = map(str, pair)
    settings = OpenpiSettings(port=0, certificate=certificate, private_key=key, key='k')
    trusting = ssl.create_default_context(cafile=certificate)
    with serving(ManyRobots.load(small_run.base), settings) as server:
        headers = {'Authorization': 'Api-Key k'}
        with server.client(ssl=trusting, additional_headers=headers) as client:
            assert 'actions' in client.ask(observation())
        with pytest.raises(InvalidMessage), server.client(additional_headers=headers):
            pass


def test_certificates_that_are_none(pair, tmp_path):
    certificate, key = map(str, pair)
    (tmp_path / 'text').write_text(f'{datetime.date.today()}')
    assert tls_context('', '') is None
    for files in ((certificate, ''), ('', key), (str(tmp_path / 'text'), key), ('none', key)):
        with pytest.raises(UserError, match='expected a certificate and its key in PEM'):
            tls_context(*files)
