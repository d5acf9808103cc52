"""Checks of settings: sections with the keys of their dataclass, values of the kind that it says,
rows with as many of them. What is wrong becomes a sentence.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from sigma_jax.errors import UserError

KINDS = {float: 'numbers', int: 'whole numbers', bool: 'True or False', str: 'texts'}
ONE = {float: 'a number', int: 'a whole number', bool: 'True or False', str: 'a text'}
PATTERNS = ('patterns', 'int8', 'freeze')


def check_fields(kind: type, values: Mapping[str, Any], where: str) -> None:
    """Checks the values of a section: whole numbers where the dataclass says `int`, and so on.

    Args:
      kind: the dataclass; fields that are neither numbers, flags, texts nor rows are not checked.
      values: settings by field; others are not looked at.
      where: stands before a field's name in the message, such as 'config.loss.'.

    Raises:
      UserError: a value is of another kind, or a row of another length.
    """
    hints = typing.get_type_hints(kind)
    for name in values.keys() & hints.keys():
        check_row(f'{where}{name}', values[name], hints[name])
        check_one(f'{where}{name}', values[name], hints[name])


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Checks one value that is to be one of a few.

    Args:
      name: of the setting, for the message.
      value: as it was given.
      choices: all that there are.

    Raises:
      UserError: it is none of them.
    """
    if not isinstance(value, str | None) or value not in choices:
        *most, last = map(repr, choices)
        names = f'{", ".join(most)} or {last}'
        raise UserError(f'{name}: expected {names}, got {value!r}; choose one')


def check_one(name: str, value: Any, hint: Any) -> None:
    """Checks one value that is to be a number, a flag or a text.

    Args:
      name: of the setting, for the message.
      value: as it was given.
      hint: its type, such as `int` or `float | None`; one with anything else in it is not checked.

    Raises:
      UserError: a value of another kind.
    """
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if not set(kinds) <= {*ONE, types.NoneType}:
        return
    if value is None and types.NoneType in kinds:
        return
    wanted = [one for one in kinds if one in ONE]
    if not any(is_a(one, value) for one in wanted):
        words = ' or '.join(ONE[one] for one in wanted)
        raise UserError(f'{name}: expected {words}, got {value!r}; correct it')


def check_row(name: str, value: Any, hint: Any) -> None:
    """Checks one value that is to be a row.

    Args:
      name: of the setting, for the message.
      value: as it was given.
      hint: its type, such as `tuple[float, float]` or `tuple[str, ...] | None`; others are not
        checked.

    Raises:
      UserError: another length, values of another kind, or a pattern that is no regular expression.
    """
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in kinds:
        return
    found = [typing.get_args(one) for one in kinds if typing.get_origin(one) is tuple]
    if not found or not (inner := found[0]):
        return
    count = None if inner[-1] is Ellipsis else len(inner)
    fits = isinstance(value, (tuple, list)) and count in (None, len(value))
    if not fits or not all(is_a(inner[0], one) for one in value):
        example = '(' + ', '.join(['...'] * (count or 2)) + ')'
        raise UserError(
            f'{name}: expected {"a row of" if count is None else count} {KINDS[inner[0]]}, got '
            f"{value!r}; write --{name}='{example}'"
        )
    if name.rpartition('.')[2] in PATTERNS:
        check_patterns(name, value)


def is_a(kind: type, value: Any) -> bool:
    """Whether a value is of a kind: a whole number is a `float` too, True is neither number.

    Args:
      kind: float, int, bool or str.
      value: anything.

    Returns:
      Whether it is.

    Examples:
      >>> from sigma_jax.settings import is_a
      >>> is_a(float, 1), is_a(float, True), is_a(int, 1.0)
      (True, False, False)
    """
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def check_patterns(name: str, patterns: Any) -> None:
    """Checks regular expressions.

    Args:
      name: of the setting, for the message.
      patterns: texts.

    Raises:
      UserError: one is no regular expression.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f'{name}: expected regular expressions, got {pattern!r} ({error}); correct it'
            ) from error


def from_section(kind: type, settings: Any, where: str) -> Any:
    """A frozen dataclass from a section of a config.

    Args:
      kind: the dataclass.
      settings: its fields by name; lists stand for tuples.
      where: the section's name, for messages; '' is the config itself.

    Returns:
      An instance of `kind`.

    Raises:
      UserError: unknown or missing keys, values of another kind, rows of another length.

    Examples:
      >>> from sigma_jax.settings import from_section
      >>> from sigma_jax.sigma.curriculum import CurriculumConfig
      >>> from_section(CurriculumConfig, {'sem': [0.0, 1.0]}, 'curriculum').sem
      (0.0, 1.0)
      >>> from_section(CurriculumConfig, {'sem': [0.0]}, 'curriculum')
      Traceback (most recent call last):
      ...
      sigma_jax.errors.UserError: config.curriculum.sem: expected 2 numbers, got [0.0]; write
      --config.curriculum.sem='(..., ...)'
    """
    name = f'config.{where}' if where else 'config'
    fields = {f.name for f in dataclasses.fields(kind)}
    settings = section(settings, name)
    if unknown := sorted(set(settings) - fields):
        raise UserError(
            f'{name}: expected some of {sorted(fields)}, got unknown keys {unknown}; correct them'
        )
    needed = [f.name for f in dataclasses.fields(kind) if not _has_default(f)]
    if missing := sorted(set(needed) - set(settings)):
        raise UserError(f'{name}: expected values for {needed}, got none for {missing}; add them')
    check_fields(kind, settings, f'{name}.')
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})


def _has_default(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def section(settings: Any, name: str) -> dict[str, Any]:
    """A section of a config as a dictionary.

    Args:
      settings: a mapping, or what has `to_dict`, as an ml_collections config does.
      name: of the section, for the message.

    Returns:
      Its values by name.

    Raises:
      UserError: it is neither, or has keys that are no names.
    """
    found = settings.to_dict() if hasattr(settings, 'to_dict') else settings
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise UserError(f'{name}: expected settings by name, got {found!r}; give a dictionary')
    return dict(found)
