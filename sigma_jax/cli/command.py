"""What the scripts share: a command line that explains itself, and user errors as one sentence
with status 2.
"""

import difflib
import functools
import logging as standard_logging
import pathlib
import re
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from sigma_jax.errors import UserError
from sigma_jax.training.signals import Stopped

HELP_FLAGS = ('-h', '-help', '--help', '-helpshort', '--helpshort')


def reports_user_errors(main: Callable) -> Callable:
    """A script's main function, whose UserError is printed as a sentence, without a traceback, and
    ends with status 2.

    Args:
      main: the function.

    Returns:
      The same with that.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        # Orbax reports every file it touches, and an error before it raises it
        logging.set_verbosity(logging.FATAL)
        # of writes that fail
        standard_logging.getLogger('asyncio').setLevel(standard_logging.CRITICAL)
        warnings.filterwarnings('ignore', module='orbax')
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f'error: {error}', file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            print(f'error: {error.strerror or error}: {error.filename or ""}', file=sys.stderr)
            sys.exit(2)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            sys.exit(128 + stopped.number)
        except KeyboardInterrupt:
            print('stopped', file=sys.stderr)
            sys.exit(130)

    return wrapped


def run_with_config(main: Callable[[Any], int | None], default: str) -> None:
    """Calls `main` with the config that the command line describes (`--config=FILE.py
    --config.KEY=VALUE ...`).

    Other flags of the script are read as usual (absl). `--help` lists the script's flags and every
    key of the config with its value.

    Args:
      main: gets the ConfigDict; what it returns is the exit status.
      default: file that is taken without `--config`.
    """
    holder = config_flags.DEFINE_config_file('config', None, 'see help_text')
    parse = reports_user_errors(functools.partial(parse_flags, default=default))
    app.run(reports_user_errors(lambda _: main(holder.value)), flags_parser=parse)


def parse_flags(argv: list[str], default: str, values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the command line.

    Args:
      argv: program and arguments.
      default: file that is taken without `--config`.
      values: that the flags are written to.

    Returns:
      [program].

    Raises:
      UserError: the command line makes no sense.
    """
    argv = [argv[0], *_with_config(argv[1:], default)]
    file = _config_file(argv)
    config = load(file)
    settings = dict(flatten(config))
    if any(argument in HELP_FLAGS for argument in argv):
        print(help_text(argv[0], file, settings))
        sys.exit(0)
    if missing := sorted(set(load(default)) - set(config)):
        raise UserError(
            f'expected a config with the sections of {default}, got {file} without '
            f'{", ".join(missing)}'
        )
    require_known(argv, file, settings)
    try:
        rest = values(argv)
    except flags.IllegalFlagValueError as error:
        if absent := re.search(r'--(\w+)=None', str(error)):
            raise UserError(f'expected --{absent[1]}=..., got none; --help explains it') from error
        raise UserError(
            f'expected flags and settings as --help lists them, got: {error}'
        ) from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f'expected flags and settings as --help lists them, got: {str(error).rstrip(".")}'
        ) from error
    if len(rest) > 1:
        raise UserError(
            f'expected options that start with --, got {" ".join(rest[1:])}; --help lists them'
        )
    return rest


def _with_config(arguments: list[str], default: str) -> list[str]:
    has_config = any(re.fullmatch(r'--?config(=.*)?', argument) for argument in arguments)
    return arguments if has_config else [f'--config={default}', *arguments]


def _config_file(argv: list[str]) -> str:
    for argument, following in zip(argv, [*argv[1:], ''], strict=True):
        if match := re.fullmatch(r'--?config(?:=(.*))?', argument):
            return following if match[1] is None else match[1]
    raise UserError('expected --config=FILE.py, got none')


def load(file: str) -> Mapping:
    """What `get_config()` of a config file returns.

    Args:
      file: its path.

    Returns:
      The ConfigDict.

    Raises:
      UserError: there is no such file or function.
    """
    if not pathlib.Path(file).is_file() or not file.endswith('.py'):
        raise UserError(
            f'expected a config, a .py file, got none at {file!r}; take one of configs/*.py'
        )
    get_config = runpy.run_path(file).get('get_config')
    if get_config is None:
        raise UserError(
            f'expected a function get_config() in {file}, got none; configs/data_so101.py shows one'
        )
    return get_config().to_dict()


def flatten(settings: Mapping, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Every leaf of nested settings.

    Args:
      settings: nested.
      prefix: before each key.

    Returns:
      An iterator of ('section.key', value).
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def require_known(argv: list[str], file: str, settings: Mapping[str, Any]) -> None:
    """Checks the overrides of a command line.

    Args:
      argv: program and arguments.
      file: of the config.
      settings: of the config.

    Raises:
      UserError: an override names a key that the config does not have.
    """
    for argument in argv:
        match = re.match(r'--?config\.([^=]+)', argument)
        if match and (key := re.sub(r'\[\d+\]', '', match[1])) not in settings:
            near = difflib.get_close_matches(
                key, settings, n=3, cutoff=0.7
            ) or difflib.get_close_matches(key, settings, n=3, cutoff=0.4)
            closest = f'closest: {", ".join(near)}' if near else '--help lists all'
            raise UserError(f'expected a setting of {file}, got --config.{key}; {closest}')


def help_text(program: str, file: str, settings: Mapping[str, Any]) -> str:
    """The script's docstring, its flags, and the settings of its config.

    Args:
      program: its name.
      file: of the config.
      settings: of the config.

    Returns:
      The text.
    """
    main = sys.modules['__main__']
    lines = [
        (main.__doc__ or '').strip(),
        '',
        'flags:',
        f'  --config: experiment, one of configs/*.py; now {file}',
    ]
    for flag in flags.FLAGS.get_key_flags_for_module(program):
        lines.append(f'  --{flag.name}: {flag.help}')
    lines += ['', f'settings of {file}, which explains them (override with --config.KEY=VALUE):']
    return '\n'.join(lines + [f'  --config.{key}={value!r}' for key, value in settings.items()])
