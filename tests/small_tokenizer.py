"""A tokenizer of a few hundred entries for tiny models: every byte, every state number, the words
of the tasks.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sigma_jax.errors import UserError
from sigma_jax.processing.tokenizer import clean_task

SPECIAL = ('<pad>', '<eos>', '<bos>', '<unk>')
SPACE = '\u0120'  # how byte-level BPE writes a space
WORD = r' ?-?\d+| ?\p{L}+| ?[^\s\p{L}\d]+|\s+(?!\S)|\s'  # a sign belongs to its number
VOCAB_SIZE = 640


def train_small_tokenizer(
    texts: Iterable[str], vocab_size: int = VOCAB_SIZE
) -> tokenizers.Tokenizer:
    """Trains a byte-level BPE tokenizer on task strings, in pi0.5's prompt format; the same texts
    give the same one.

    Ids 0 to 3 are pad, eos, bos, unknown; then 256 bytes, the numbers -1 to 256 with the space
    before them, and as many pieces of the texts as fit. `vocab_size` is exact: unused places are
    filled with <unused..> entries.

    Raises:
      UserError: `vocab_size` is too small for specials, bytes and numbers.
    """
    numbers = _number_merges()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *alphabet, *(left + right for left, right in numbers)]
    if vocab_size < len(tokens):
        raise UserError(
            f'expected a vocabulary of at least {len(tokens)} entries, got {vocab_size}; raise it'
        )
    words = _word_merges(sorted({clean_task(text) for text in texts}), vocab_size - len(tokens))
    tokens += [left + right for left, right in words]
    tokens += [f'<unused{i}>' for i in range(vocab_size - len(tokens))]
    vocab = {token: i for i, token in enumerate(tokens)}
    result = _byte_level(models.BPE(vocab=vocab, merges=[*numbers, *words], unk_token='<unk>'))
    result.add_special_tokens(list(SPECIAL))
    return result


def save_tokenizer(tokenizer: tokenizers.Tokenizer, path: str | Path) -> None:
    """Writes a tokenizer.json that `load_tokenizer` reads."""
    tokenizer.save(str(path), pretty=True)


def _number_merges() -> list[tuple[str, str]]:
    """Merges that make ' -1' to ' 256' one token each; their prefixes are numbers too, but for '
    -'.
    """
    merges = [(SPACE, '-'), (SPACE + '-', '1')]
    for number in range(257):
        digits = str(number)
        merges.append((SPACE + digits[:-1], digits[-1]))
    return merges


def _word_merges(texts: list[str], count: int) -> list[tuple[str, str]]:
    """The first `count` merges that BPE learns from the texts, each in the prompt around it."""
    learner = _byte_level(models.BPE())
    room = 256 + count
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    learner.train_from_iterator(
        [part for text in texts for part in (f'Task: {text}, State:;\nAction: ', text)], trainer
    )
    state = json.loads(learner.to_str())['model']
    return [tuple(pair) for pair in state['merges']][:count]


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    result = tokenizers.Tokenizer(model)
    split = pre_tokenizers.Split(tokenizers.Regex(WORD), behavior='isolated')
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    result.decoder = decoders.ByteLevel()
    return result
