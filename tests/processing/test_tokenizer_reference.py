"""Prompt ids are the Gemma tokenizer's (marker `reference`).

GEMMA_TOKENIZER names a tokenizer.json of Gemma or PaliGemma; tests/data/prompts/README.md says
where the ids come from.
"""

import hashlib
import os

import numpy as np
import pytest

from sigma_jax.backbones.pi05_prompt import pi05_prompt
from sigma_jax.processing.tokenizer import load_tokenizer
from tests.processing.test_tokenizer import stored_prompts

pytestmark = pytest.mark.reference
SPECIAL = range(8, 12)  # tasks that spell special tokens, which we, as openpi, read as text


def digest(ids: list[int]) -> str:
    return hashlib.sha256(' '.join(map(str, ids)).encode()).hexdigest()[:16]


def test_ids_of_200_prompts() -> None:
    tokenizer, cases = load_tokenizer(os.environ['GEMMA_TOKENIZER']), stored_prompts()
    wrong = []
    for number, case in enumerate(cases):
        state = np.array(case['state'], np.float32)
        for key, width in (('openpi', 0), ('lerobot', 32)):
            if (
                digest(tokenizer.encode(pi05_prompt(case['task'], state, width)))
                != case[f'{key}_ids']
            ):
                wrong.append((number, key))
    assert len(cases) == 200
    assert wrong == [(number, key) for number in SPECIAL for key in ('openpi', 'lerobot')]


def test_special_tokens_are_all_that_differs() -> None:
    """Between the parts that spell special tokens, our ids are those of the stored parser's text
    pieces.
    """
    tokenizer = load_tokenizer(os.environ['GEMMA_TOKENIZER'])
    for number in SPECIAL:
        ids = tokenizer.encode(stored_prompts()[number]['openpi'])
        assert ids[0] == 2 and not {0, 1, 2, 3} & set(ids[1:])
        assert tokenizer.decode(ids) == stored_prompts()[number]['openpi']
