"""Text to token ids: PaliGemma's tokenizer from a file or the hub, or a small one trained on the
embedded tasks.

All of them share Gemma's special ids (0 pad, 1 eos, 2 bos, 3 unknown). Numpy only.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Int

from sigma_jax.errors import UserError
from sigma_jax.hub import download

PAD, EOS, BOS, UNKNOWN = 0, 1, 2, 3
NO_STATE = -1  # in place of a width: the prompt holds the task alone
# of the table's rows; PaliGemma's own 256,000 pieces fill 99.6 % of its 257,152 rows
SMALLEST_SHARE = 0.9


class Codec(Protocol):
    """What a tokenizer library offers: ids without special tokens, and back."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text; one that spells a special token is text like any other.

        Args:
          text: any.

        Returns:
          Ids without special tokens.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids.

        Args:
          ids: without special tokens.

        Returns:
          The text.
        """


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer behind one interface; it pickles, so that loader workers can have it.

    Attributes:
      codec: the library's.
      vocab_size: number of ids.
      source: where it was read from.
    """

    codec: Codec
    vocab_size: int
    source: str

    def encode(self, text: str) -> list[int]:
        """Ids of a text with a leading bos.

        Args:
          text: any.

        Returns:
          Ids.
        """
        return [BOS, *self.codec.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids.

        Args:
          ids: special tokens among them are left out.

        Returns:
          The text.
        """
        return self.codec.decode([int(i) for i in ids if i > UNKNOWN])


def clean_task(task: str) -> str:
    """openpi's cleaning: outer space stripped, underscores and newlines become spaces.

    Args:
      task: the instruction.

    Returns:
      What the prompt holds of it.

    Examples:
      >>> from sigma_jax.processing.tokenizer import clean_task
      >>> clean_task(' pick_up the brick' + chr(10))
      'pick up the brick'
    """
    return task.strip().replace('_', ' ').replace('\n', ' ')


def encode_parts(tokenizer: Tokenizer, parts: Sequence[str]) -> list[int]:
    """Ids of all parts one after another, with one leading bos.

    Args:
      tokenizer: the policy's.
      parts: of a prompt, each encoded by itself.

    Returns:
      Ids.
    """
    return [BOS, *(i for part in parts for i in tokenizer.codec.encode(part))]


def pad_tokens(
    ids: Sequence[int], length: int, what: str = 'prompt'
) -> tuple[Int[np.ndarray, ' l'], Bool[np.ndarray, ' l']]:
    """Ids padded at the end with 0.

    Args:
      ids: of a text.
      length: of the result.
      what: they are, 'prompt' or 'text', for the message.

    Returns:
      ids: padded, int32.
      mask: true for real ones.

    Raises:
      UserError: more ids than `length`; nothing is cut off in silence.

    Examples:
      >>> from sigma_jax.processing.tokenizer import pad_tokens
      >>> ids, mask = pad_tokens([2, 7], length=4)
      >>> ids.tolist(), mask.tolist()
      ([2, 7, 0, 0], [True, True, False, False])
    """
    if len(ids) > length:
        raise UserError(
            f'expected a {what} of at most {length} tokens, got {len(ids)}; '
            f'raise data.max_{what}_len or shorten the task'
        )
    padded = np.zeros(length, np.int32)
    padded[: len(ids)] = ids
    return padded, np.arange(length) < len(ids)


def check_vocab(tokenizer: Tokenizer, table_rows: int) -> None:
    """Checks that tokenizer and embedding table belong together.

    Args:
      tokenizer: the policy's.
      table_rows: rows of its embedding table.

    Raises:
      UserError: ids would fall outside the table, or a tenth or more of the table could never be
        reached.
    """
    if not SMALLEST_SHARE * table_rows <= tokenizer.vocab_size <= table_rows:
        raise UserError(
            f'expected a tokenizer for an embedding table of {table_rows} rows, got '
            f'{tokenizer.vocab_size} entries in {tokenizer.source}; take the tokenizer the '
            'checkpoint was trained with'
        )


def load_tokenizer(spec: str | os.PathLike[str]) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      spec: a `tokenizer.json`, a sentencepiece `.model`, a directory with either, or a hub id.

    Returns:
      The tokenizer, with Gemma's special ids.

    Raises:
      UserError: nothing there, an unreadable file, other special ids than Gemma's, or a missing
        extra.
    """
    path = tokenizer_file(spec)
    return _load_sentencepiece(path) if path.suffix == '.model' else _load_json(path)


def tokenizer_file(spec: str | os.PathLike[str]) -> Path:
    """The file of a tokenizer, fetched where it is on the hub.

    Args:
      spec: as `load_tokenizer` takes it.

    Returns:
      A `tokenizer.json` or a `.model`.

    Raises:
      UserError: nothing there.
    """
    path = Path(spec)
    if path.is_dir():
        names = [name for name in ('tokenizer.json', 'tokenizer.model') if (path / name).is_file()]
        if not names:
            raise UserError(
                f'expected tokenizer.json or tokenizer.model in {path}, got neither; put one there'
            )
        path = path / names[0]
    return path if path.is_file() else _from_hub(str(spec))


def _load_json(path: Path) -> Tokenizer:
    import tokenizers

    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f'expected a tokenizer.json at {path}, got "{error}"; fetch it again'
        ) from error
    special = [inner.token_to_id(token) for token in ('<pad>', '<eos>', '<bos>', '<unk>')]
    _check_special(special, path)
    return Tokenizer(JsonCodec(inner), inner.get_vocab_size(), str(path))


class JsonCodec:
    """A `tokenizers.Tokenizer` that keeps reading special tokens as plain text when it is
    unpickled.

    Args:
      inner: the library's; its setting for special tokens is changed.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.inner.encode_special_tokens = True

    def __reduce__(self) -> tuple[type['JsonCodec'], tuple[Any]]:
        return JsonCodec, (self.inner,)

    def encode(self, text: str) -> list[int]:
        """Ids of a text.

        Args:
          text: any.

        Returns:
          Ids without special tokens.
        """
        return self.inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids.

        Args:
          ids: without special tokens.

        Returns:
          The text.
        """
        return self.inner.decode(ids)


def _check_special(special: list[int | None], path: Path) -> None:
    if special != [PAD, EOS, BOS, UNKNOWN]:
        raise UserError(
            f"expected Gemma's ids 0 to 3 for pad, eos, bos, unk in {path}, got "
            f'{special}; take another'
        )


def _load_sentencepiece(path: Path) -> Tokenizer:
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError(
            f'expected the package sentencepiece to read {path}, got none installed; pip install '
            "'sigma_jax[hf]'"
        ) from error
    inner = sentencepiece.SentencePieceProcessor(model_file=str(path))
    special = [inner.pad_id(), inner.eos_id(), inner.bos_id(), inner.unk_id()]
    _check_special(special, path)
    return Tokenizer(inner, inner.vocab_size(), str(path))


def _from_hub(name: str) -> Path:
    if name.count('/') != 1 or name.startswith(('.', '/')) or name.endswith(('.json', '.model')):
        raise UserError(
            f'expected a tokenizer file, its directory or a hub id, got {name}, which '
            'does not exist'
        )
    return download.fetch(name, files=('tokenizer.json',)).path / 'tokenizer.json'
