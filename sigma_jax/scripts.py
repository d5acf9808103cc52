"""What the four scripts share: user errors become one sentence and exit status 2; libraries keep quiet."""

import functools
import sys
import warnings
from collections.abc import Callable

from absl import logging

from sigma_jax.errors import UserError


def reports_user_errors(main: Callable) -> Callable:
    """Runs `main`; a UserError is printed as a sentence, without a traceback, and ends with status 2."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        logging.set_verbosity(logging.ERROR)  # Orbax reports every file it touches
        warnings.filterwarnings('ignore', module='orbax')
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f'error: {error}', file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            print(f'error: {error.strerror or error}: {error.filename or ""}', file=sys.stderr)
            sys.exit(2)

    return wrapped

