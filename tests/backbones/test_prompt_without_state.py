"""Prompts without the state are openpi's, id by id, on every way from a task to the model."""

import dataclasses
import json
import os
import pathlib
import subprocess

import numpy as np
import pytest

from sigma_jax.backbones.pi05_prompt import prompt_parts
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.errors import UserError
from sigma_jax.processing.processor import of_policy
from sigma_jax.processing.spec import OPENPI, OURS
from sigma_jax.processing.tokenizer import NO_STATE, encode_parts, load_tokenizer
from tests.convert.test_assets import stats_json
from tests.data_pipeline import recordings
from tests.loading import make_loader

ROOT = pathlib.Path(__file__).parents[2]
TOKENIZER = ROOT / 'assets/tokenizer/tokenizer.json'
PROMPTS = ROOT / 'tests/data/prompts'
STORED = json.loads((PROMPTS / 'without_state.json').read_text())
BLIND = dataclasses.replace(OPENPI, prompt_state_dim=NO_STATE, cameras=('up',))


def test_texts_and_ids_are_openpis():
    tokenizer = load_tokenizer(TOKENIZER)
    assert len(STORED) == 200
    for case in STORED:
        parts = prompt_parts(case['task'], np.array([0.3]), NO_STATE)
        assert list(parts) == case['texts'] and encode_parts(tokenizer, parts) == case['ids']


def test_with_a_state_it_is_one_text_as_before():
    tokenizer = load_tokenizer(TOKENIZER)
    for width, text in ((0, '0'), (2, '0 128')):
        (part,) = prompt_parts('a_b', np.array([-1.0]), width)
        assert part == f'Task: a b, State: {text};\nAction: '
        assert encode_parts(tokenizer, (part,)) == tokenizer.encode(part)


@pytest.mark.parametrize('number', [0, 17, 150])
def test_a_camera_frame_becomes_openpis_prompt_whatever_the_state(number):
    tokenizer, statistics, case = load_tokenizer(TOKENIZER), stats_json(), STORED[number]
    frame = np.zeros((56, 56, 3), np.uint8)
    processor = of_policy(BLIND, statistics, tokenizer, 56, prompt_parts)
    for state in (np.zeros(3), np.array([90.0, -3, 1])):
        got = processor.inputs({'up': frame}, state, case['task'])
        assert got['prompt'][got['prompt_mask']].tolist() == case['ids']


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp('blind')
    root = recordings.record(folder, (40, 40, 40))
    config = recordings.config(root, prompt_state_dim=NO_STATE, tokenizer=str(TOKENIZER))
    prepare(config, folder / 'shards')
    return folder / 'shards', config


def prompts_of(folder, policy, **settings):
    tokenizer = load_tokenizer(TOKENIZER)
    loader = make_loader(
        open_shards(folder).split('train'),
        batch_size=2,
        tokenizer=tokenizer,
        policy=policy,
        **settings,
    )
    batch = next(iter(loader))
    rows, masks = (
        batch[name].reshape(-1, batch[name].shape[-1]) for name in ('prompt', 'prompt_mask')
    )
    return {tuple(row[mask].tolist()) for row, mask in zip(rows, masks, strict=True)}


def test_the_loader_says_the_task_alone_by_policy_or_by_shards(shards):
    folder, _ = shards
    meta = json.loads((folder / 'meta.json').read_text())
    tokenizer = load_tokenizer(TOKENIZER)
    want = {
        tuple(encode_parts(tokenizer, prompt_parts(task, np.zeros(1), NO_STATE)))
        for task in meta['tasks']
    }
    assert meta['prompt_state_dim'] == NO_STATE
    for policy in (BLIND, OURS):  # ours asks the shards
        assert prompts_of(folder, policy) <= want
    seeing = prompts_of(folder, OPENPI)
    assert not seeing & want and all(len(ids) > 3 + max(map(len, want)) for ids in seeing)


def test_lengths_are_checked_as_the_prompt_is_written(shards, tmp_path):
    folder, config = shards
    tasks = json.loads((folder / 'meta.json').read_text())['tasks']
    tokenizer = load_tokenizer(TOKENIZER)
    longest = max(
        len(encode_parts(tokenizer, prompt_parts(task, np.zeros(1), NO_STATE))) for task in tasks
    )
    config = dataclasses.replace(config, max_prompt_len=longest)
    prepare(config, tmp_path / 'fits')
    with pytest.raises(UserError, match=f'prompt of at most {longest} tokens'):
        prepare(dataclasses.replace(config, prompt_state_dim=0), tmp_path / 'too_long')


@pytest.mark.reference
def test_stored_prompts_are_what_openpi_writes():
    python = os.environ['REFERENCE_OPENPI']
    done = subprocess.run(
        [python, PROMPTS / 'without_state.py', TOKENIZER],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert json.loads(done.stdout) == STORED
