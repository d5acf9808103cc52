"""huggingface_hub's HTTP client with patience: waits as the hub asks, and longer after every
failure.

The client's own retries (1.x, 2.x) leave gaps: none for the question that resolves a revision, none
for a 5xx answer to a download, no Retry-After given as a date, no jitter. So every request goes
through one loop here, and the client's own
loops never come into action: what is given up here ends as a UserError, which they let through.
"""

import contextlib
import dataclasses
import datetime
import email.utils
import importlib
import logging
import random
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sigma_jax.errors import UserError
from sigma_jax.hub.scrub import Scrubbed, scrub

RETRIED = (408, 425, 429, 500, 502, 503, 504)
_LOG = logging.getLogger(__name__)
# seconds to the next window in the hub's RateLimit header
_RESET = re.compile(r'(?:^|;)\s*t=(\d+)')


@dataclasses.dataclass(frozen=True)
class Patience:
    """How often and how long to wait (ours).

    Attributes:
      tries: of one request, or of one file without a byte of progress.
      first: seconds before the second try; doubled each time, then drawn from its upper half.
      longest: seconds that one such wait may take.
      asked: seconds to wait at most where the hub names them (Retry-After); it counts in windows of
        five minutes.
      timeout: seconds without a byte after which a connection counts as dead.
    """

    tries: int = 8
    first: float = 1.0
    longest: float = 60.0
    asked: float = 900.0
    timeout: float = 30.0
    sleep: Callable[[float], None] = time.sleep

    def seconds(self, failures: int) -> float:
        """The wait after so many failures in a row.

        Args:
          failures: so far.

        Returns:
          Seconds.
        """
        return min(self.longest, self.first * 2 ** (failures - 1)) * random.uniform(0.5, 1)

    def pause(self, what: str, why: str, failures: int, asked: float | None = None) -> None:
        """Waits before the next try.

        Args:
          what: was asked for, for messages.
          why: it failed.
          failures: so far.
          asked: seconds that the hub asks to wait; None: it does not say.

        Raises:
          UserError: it was the last try, or the hub asks for more than there is patience.
        """
        if failures >= self.tries:
            raise UserError(
                f'expected {what} from the hub, got "{why}" {failures} times; look at the '
                'connection and run the same command again: what has been fetched is kept'
            )
        if asked is not None and asked > self.asked:
            raise UserError(
                f'expected {what} from the hub, got "{why}" with {asked:.0f} s to wait; run the '
                'same command again then: what has been fetched is kept'
            )
        wait = (
            self.seconds(failures)
            if asked is None
            else asked + random.uniform(0, min(self.first, 1))
        )
        _LOG.warning('%s: %s; waiting %.1f s (try %d of %d)', what, why, wait, failures, self.tries)
        self.sleep(wait)


def retry_after(headers: Any, now: datetime.datetime | None = None) -> float | None:
    """Seconds that an answer asks to wait: Retry-After as a number or a date (RFC 9110), or the
    hub's RateLimit.

    Args:
      headers: of the answer.
      now: to count a date from; None: the clock.

    Returns:
      Seconds; None where it does not ask.
    """
    value = (headers.get('Retry-After') or '').strip()
    if re.fullmatch(r'\d{1,9}(\.\d+)?', value):
        return float(value)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        date = email.utils.parsedate_to_datetime(value)
        date = date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
        return max(0.0, (date - (now or datetime.datetime.now(datetime.UTC))).total_seconds())
    match = _RESET.search(headers.get('RateLimit') or '')
    return float(match[1]) if match else None


def network_errors(client: Any) -> tuple[type[Exception], ...]:
    """What the library below `client` raises when a connection fails.

    Args:
      client: of huggingface_hub.

    Returns:
      The exceptions.
    """
    library = importlib.import_module(_library(client).__module__)
    return library.NetworkError, library.TimeoutException, library.RemoteProtocolError


def _library(client: Any) -> type:
    """The HTTP library's own class of client: httpx's in huggingface_hub 1, httpx2's in 2."""
    return next(
        kind
        for kind in type(client).__mro__
        if kind.__module__.split('.')[0] in ('httpx', 'httpx2')
    )


@contextlib.contextmanager
def patient_client(
    hub: Any, patience: Patience, tokens: Sequence[str | None] = ()
) -> Iterator[None]:
    """Within the block huggingface_hub asks through a patient client, and logs no tokens.

    Args:
      hub: the module.
      patience: how long.
      tokens: not to be logged.

    Returns:
      A context.

    Raises:
      UserError: a version before 1.0.
    """
    if not hasattr(hub, 'set_client_factory'):
        raise UserError(
            f'expected huggingface_hub 1.0 or newer, got {hub.__version__}; pip install --upgrade '
            "'sigma_jax[hf]'"
        )
    factory = importlib.import_module('huggingface_hub.utils._http').default_client_factory
    hub.set_client_factory(lambda: _patient(factory(), patience))
    handlers, hidden = logging.getLogger('huggingface_hub').handlers, Scrubbed(tokens)
    for handler in handlers:
        handler.addFilter(hidden)
    try:
        yield
    finally:
        hub.set_client_factory(factory)
        for handler in handlers:
            handler.removeFilter(hidden)


def is_unresolved(error: BaseException | None) -> bool:
    """Whether a name could not be looked up, as where there is no network.

    Args:
      error: what a request ended with.

    Returns:
      Whether it, or what caused it, is that.
    """
    while error is not None:
        if isinstance(error, socket.gaierror) or 'name resolution' in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def _patient(client: Any, patience: Patience) -> Any:
    """The same client, whose `send` tries again."""
    send, failures_of = client.send, network_errors(client)
    client.timeout = patience.timeout

    def patient_send(request: Any, **options: Any) -> Any:
        what = f'{request.method} {request.url.path}'  # without the query, which may be signed
        failures = 0
        while True:
            asked, answer, tries = None, None, patience
            try:
                answer = send(request, **options)
                if answer.status_code not in RETRIED:
                    return answer
                why, asked = (
                    f'{answer.status_code} {answer.reason_phrase}',
                    retry_after(answer.headers),
                )
            except failures_of as error:
                why = reason(error)
                if is_unresolved(error):  # without a network more of the same
                    tries = dataclasses.replace(patience, tries=min(3, patience.tries))
            finally:
                if answer is not None and answer.status_code in RETRIED:
                    answer.close()
            failures += 1
            tries.pause(what, why, failures, asked)

    client.send = patient_send
    return client


def reason(error: BaseException) -> str:
    """The first line of an error, with its name, and nothing secret in it.

    Args:
      error: any.

    Returns:
      One line.
    """
    return scrub(f'{type(error).__name__}: {str(error).strip()}'.strip(': ').splitlines()[0])
