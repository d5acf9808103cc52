"""Special ids, prompt format and round trips of the small tokenizer; tokenizer against embedding
table.
"""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from sigma_jax.backbones.pi05_prompt import discretise_state, pi05_prompt
from sigma_jax.errors import UserError
from sigma_jax.processing.tokenizer import (
    Tokenizer,
    check_vocab,
    load_tokenizer,
    pad_tokens,
)
from tests.small_tokenizer import save_tokenizer, train_small_tokenizer

EMBEDDED = Path(__file__).parents[2] / 'assets' / 'tokenizer' / 'tokenizer.json'
EMBEDDED_TASKS = (
    'pink lego brick into the transparent box',
    'blue lego brick into the transparent box',
    'pink lego brick onto the plate',
    'lift the pink lego brick',
    'push the blue lego brick to the left',
    'touch the pink lego brick',
)
TASKS = ('lift the pink lego brick', 'push_the blue brick\nto the left ')


@pytest.fixture(scope='module')
def small() -> Tokenizer:
    return load_tokenizer(EMBEDDED)


def test_embedded_tokenizer_has_gemmas_special_ids(small: Tokenizer) -> None:
    inner = tokenizers.Tokenizer.from_file(str(EMBEDDED))
    assert [inner.token_to_id(name) for name in ('<pad>', '<eos>', '<bos>', '<unk>')] == [
        0,
        1,
        2,
        3,
    ]
    assert small.vocab_size == 640
    assert small.encode('')[0] == 2 and len(small.encode('')) == 1


@pytest.mark.parametrize(
    'text', ['lift the brick', 'äöü 漢字 🦾', '\x00\x7f\t  two  spaces ', '<bos><pad> -17 999', '']
)
def test_every_text_comes_back(text: str, small: Tokenizer) -> None:
    ids = small.encode(text)
    assert small.decode(ids) == text
    assert ids[0] == 2 and min(ids[1:], default=9) > 3  # no text reaches a special id
    assert max(ids) < small.vocab_size


def test_every_byte_is_known(small: Tokenizer) -> None:
    text = bytes(range(128)).decode() + ''.join(chr(i) for i in range(128, 0x250))
    assert 3 not in small.encode(text)
    assert small.decode(small.encode(text)) == text


def test_state_numbers_are_one_token_each(small: Tokenizer) -> None:
    ids = [small.encode(f' {number}')[1:] for number in range(-1, 257)]
    assert all(len(found) == 1 for found in ids)
    assert len({found[0] for found in ids}) == 258


def test_words_of_the_prompt_are_one_token_each(small: Tokenizer) -> None:
    for word in ('Task', ' State', 'Action', ':', ',', ';', '\n', ' pink', ' brick', ' the'):
        assert len(small.encode(word)) == 2, word


def test_embedded_tokenizer_comes_from_the_embedded_tasks() -> None:
    trained = train_small_tokenizer(EMBEDDED_TASKS)
    assert json.loads(trained.to_str())['model'] == json.loads(EMBEDDED.read_text())['model']
    for task in EMBEDDED_TASKS:
        assert len(load_tokenizer(EMBEDDED).encode(task)) == 1 + len(task.split()), task


def test_same_texts_give_the_same_tokenizer(small: Tokenizer, tmp_path) -> None:
    first, second = train_small_tokenizer(TASKS), train_small_tokenizer(TASKS[::-1])
    assert first.to_str() == second.to_str()
    save_tokenizer(first, tmp_path / 'tokenizer.json')
    assert load_tokenizer(tmp_path).vocab_size == 640
    with pytest.raises(UserError, match='got 300'):
        train_small_tokenizer(TASKS, 300)


def test_prompt_is_pi05s() -> None:
    state = np.array([-1.2, -1.0, -0.004, 0.0, 0.999, 1.0, 3.0])
    prompt = pi05_prompt(' push_the brick\nleft ', state)
    assert prompt == 'Task: push the brick left, State: -1 0 127 128 255 255 255;\nAction: '


def test_bins_split_the_interval_evenly() -> None:
    """Independent of digitize: bin k holds [-1 + k / 128, -1 + (k + 1) / 128)."""
    values = np.random.default_rng(0).uniform(-1, 1, 1000)
    assert np.array_equal(discretise_state(values), np.floor((values + 1) * 128))


def stored_prompts() -> list[dict]:
    """200 tasks and states with the texts that openpi and LeRobot build of them."""
    return json.loads((Path(__file__).parents[1] / 'data' / 'prompts' / 'prompts.json').read_text())


def test_texts_are_those_of_openpi_and_lerobot() -> None:
    cases = stored_prompts()
    states = [np.array(case['state'], np.float32) for case in cases]
    assert len({case['openpi'] for case in cases}) == 200
    assert any((state < -1).any() and (state > 1).any() for state in states)
    for case, state in zip(cases, states, strict=True):
        assert pi05_prompt(case['task'], state) == case['openpi']
        assert pi05_prompt(case['task'], state, 32) == case['lerobot']


def test_tasks_cannot_smuggle_in_special_tokens(small: Tokenizer) -> None:
    """As sentencepiece in openpi: text that spells a special token is text."""
    spelt = [
        case
        for case in stored_prompts()
        if any(name in case['task'] for name in ('<bos>', '<eos>', '<pad>'))
    ]
    assert len(spelt) == 4
    for case in spelt:
        ids = small.encode(case['openpi'])
        assert ids[0] == 2 and not {0, 1, 2} & set(ids[1:])


@pytest.mark.parametrize('state', [[np.nan], [0.5, np.nan, 3]])
def test_a_state_without_numbers_is_refused(state: list[float]) -> None:
    with pytest.raises(UserError, match='expected numbers in the normalised state, got .*nan'):
        pi05_prompt('lift', np.array(state))
    assert pi05_prompt('lift', np.array([np.inf, -np.inf])) == (
        'Task: lift, State: 255 -1;\nAction: '
    )


def test_padding_is_at_the_end_and_nothing_is_cut() -> None:
    ids, mask = pad_tokens([2, 9, 8], 5)
    assert ids.tolist() == [2, 9, 8, 0, 0] and mask.tolist() == [True, True, True, False, False]
    assert ids.dtype == np.int32
    with pytest.raises(UserError, match='at most 2 tokens, got 3'):
        pad_tokens([2, 9, 8], 2)


@pytest.mark.parametrize('rows', [640, 700])
def test_fitting_tables(rows: int, small: Tokenizer) -> None:
    check_vocab(small, rows)
    assert rows >= small.vocab_size


@pytest.mark.parametrize('rows', [639, 257152])
def test_tables_of_another_tokenizer(rows: int, small: Tokenizer) -> None:
    with pytest.raises(UserError) as caught:
        check_vocab(small, rows)
    assert str(rows) in str(caught.value) and '640' in str(caught.value)


def test_it_pickles(small: Tokenizer) -> None:
    text = '<eos> lift the brick'
    assert pickle.loads(pickle.dumps(small)).encode(text) == small.encode(text)


def test_bad_specs(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    broken, other = tmp_path / 'broken.json', tmp_path / 'other.json'
    broken.write_text('{')
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(other))
    for spec, expected in (
        (broken, 'expected a tokenizer.json'),
        (other, "Gemma's ids"),
        (tmp_path, 'got neither'),
        ('no/such/tokenizer.json', 'does not exist'),
        ('nowhere', 'does not exist'),
    ):
        with pytest.raises(UserError, match='expected') as caught:
            load_tokenizer(spec)
        assert expected in str(caught.value)
