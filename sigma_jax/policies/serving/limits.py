"""Who may ask, and how often: a key, TLS, a rate."""

import hmac
import ipaddress
import socket
import ssl
import time

from sigma_jax.errors import UserError

SCHEME = 'Api-Key '  # openpi's


class Rate:
    """A bound on the requests of one client: so many a second, as many at once after a pause.

    Args:
      limit: requests a second; 0: no bound.
    """

    def __init__(self, limit: float):
        self._limit, self._left, self._then = limit, max(limit, 1.0), time.monotonic()

    def take(self) -> None:
        """Counts a request.

        Raises:
          UserError: there were too many.
        """
        if not self._limit:
            return
        now = time.monotonic()
        more = (now - self._then) * self._limit
        self._left, self._then = min(self._left + more, max(self._limit, 1.0)), now
        if self._left < 1:
            raise UserError(
                f'expected at most {self._limit:g} requests a second, got more; ask less often, or '
                'start the server with a higher --rate'
            )
        self._left -= 1


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone.

    Args:
      host: name or address; '' stands for all.

    Returns:
      Whether all it stands for are loopback.

    Raises:
      UserError: there is no such host.
    """
    if not host:
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(
            f'expected a host to listen at, got {host!r} ({error.strerror}); 127.0.0.1 is this '
            'machine alone'
        ) from error
    return all(ipaddress.ip_address(str(one[4][0])).is_loopback for one in found)


def check_key(host: str, key: str) -> None:
    """Whether a server may listen at an address with that key.

    Args:
      host: to listen at.
      key: that clients must send; '': none.

    Raises:
      UserError: others reach it without a key.
    """
    if not key and not is_loopback(host):
        raise UserError(
            f'expected a key for what others reach ({host or "all addresses"}), got none; name a '
            'file with one (--api_key_file), or listen at 127.0.0.1'
        )


def is_key(sent: str | None, key: str) -> bool:
    """Whether a client may come in; takes as long for one wrong key as for another.

    Args:
      sent: its header `Authorization`; None: there is none.
      key: that it must send, after `Api-Key`; '': any may.

    Returns:
      Whether it may.
    """
    expected = f'{SCHEME}{key}'.encode()
    given = (sent or '').encode(errors='surrogateescape')  # websockets' way with other bytes
    return not key or hmac.compare_digest(given, expected)


def tls_context(certificate: str, private_key: str) -> ssl.SSLContext | None:
    """TLS as a server speaks it.

    Args:
      certificate: file of the chain, PEM; '': no TLS.
      private_key: its file, PEM; '': it is in `certificate`, too.

    Returns:
      The context; None without TLS.

    Raises:
      UserError: one of the files is not named, not there, or not what it should be.
    """
    if not certificate and not private_key:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, private_key or None, password='')
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f'expected a certificate and its key in PEM, without a password, got '
            f'{certificate or "none"} and {private_key or "none"} ({error}); name both files'
        ) from error
    return context
