"""Every message of an error speaks with one voice: lower-case, one sentence, no full stop."""

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

from sigma_jax.errors import few
from tests.golden import DATA

ROOT = DATA.parents[1]
FILES = sorted(
    file
    for folder in ('sigma_jax', 'benchmarks', 'experiments', 'tools')
    for file in (ROOT / folder).rglob('*.py')
) + sorted(ROOT.glob('*.py'))
# the sentence is made elsewhere, and said as a note too where nothing is refused
COMPOSED = ('{}; name statistics of such actions, ',)
PROPER = {'LoRA', 'NF4', 'Sigma', 'SigLIP', 'Gemma', 'LeRobot', 'MuJoCo', 'NaN'}


def spoken(text: ast.expr) -> str | None:
    """The text of an expression with {} for what is only known when it runs; None for no text."""
    if isinstance(text, ast.Constant):
        return text.value if isinstance(text.value, str) else None
    if isinstance(text, ast.JoinedStr):
        return ''.join(spoken(part) or '{}' for part in text.values)
    if isinstance(text, ast.BinOp) and isinstance(text.op, ast.Add):
        return (spoken(text.left) or '{}') + (spoken(text.right) or '{}')
    return None


def messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of what exceptions are made with."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and call.args:
            name = getattr(call.func, 'id', getattr(call.func, 'attr', ''))
            text = spoken(call.args[0])
            if name.endswith('Error') and text is not None:
                yield call.lineno, text


def wrong(text: str) -> str:
    """What is wrong with a message, '' for nothing."""
    first = re.match(r'\w*', text)
    if text[:1].isupper() and first is not None and first[0] not in PROPER:
        return 'begins with a capital'
    if text.rstrip().endswith('.'):
        return 'ends with a full stop'
    if re.search(r'[\w)}\]]\. +\w', text):
        return 'is two sentences: join them by ; or :'
    return 'has ; before got' if '; got ' in text else ''


def said_otherwise(file: pathlib.Path) -> Iterator[str]:
    """The messages of user errors in a file that lack `expected ..., got ...`."""
    for call in ast.walk(ast.parse(file.read_text(), file.name)):
        if isinstance(call, ast.Call) and call.args and ast.unparse(call.func) == 'UserError':
            text = spoken(call.args[0])
            if text is not None and not re.search(r'\bexpect(ed|s)?\b.*\bgot\b', text):
                yield f'{file.name}:{call.lineno} {text}'


def test_every_user_error_says_what_was_expected_and_what_came(tmp_path: pathlib.Path) -> None:
    found = [text for file in FILES for text in said_otherwise(file)]
    assert [text for text in found if not any(part in text for part in COMPOSED)] == []
    assert len(found) == len(COMPOSED)
    wanting = tmp_path / 'wanting.py'
    wanting.write_text(
        "raise UserError(f'{x} is none; take one')\n"
        "raise UserError('expected a file, ' f'got {x}')\n"
        "raise UserError('got a file where nothing was expected')\n"
        'raise UserError(text)\n'
    )
    assert [text.partition(' ')[0] for text in said_otherwise(wanting)] == [
        'wanting.py:1',
        'wanting.py:3',
    ]


def test_messages_are_one_lower_case_sentence_without_full_stop() -> None:
    found = [
        (file, line, text)
        for file in FILES
        for line, text in messages(ast.parse(file.read_text(), file.name))
    ]
    assert len(found) > 400
    bad = [f'{file.name}:{line} {wrong(text)}: {text}' for file, line, text in found if wrong(text)]
    assert bad == []


@pytest.mark.parametrize(
    ('line', 'fault'),
    [
        ("raise UserError('Expected a file, got none')", 'capital'),
        ("raise UserError('expected a file, ' f'got {x}; take one.')", 'full stop'),
        ("raise errors.UserError(f'{x} is none. Take one')", 'two sentences'),
        ("UserError('expected a file; got none')", '; before got'),
        ("raise UserError(f'{x} is none: ' + 'take one.')", 'full stop'),
        ("raise UserError(f'LoRA of {x} never learns; narrow config.lora.patterns')", ''),
        ("raise UserError(f'{Path} is none, got 0.5 of it; take one')", ''),
    ],
)
def test_what_is_no_such_message_is_reported(line: str, fault: str) -> None:
    (text,) = (text for _, text in messages(ast.parse(line)))
    assert fault in wrong(text) and bool(fault) == bool(wrong(text))


def test_few_names_the_first_and_counts_the_rest() -> None:
    assert few('abc', ', ') == 'a, b, c' and few('abcdef', ', ', 2) == 'a, b and 4 more'
