"""A tokenizer's codec that looks, inside a loader process, for an accelerator's client."""

import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path

from sigma_jax.processing.tokenizer import Codec


class Spy:
    """Encodes as `codec` does, in a worker process that has started no client only.

    Grain itself imports jax; what must not happen there is that jax starts a backend, which would
    take a GPU's memory.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def encode(self, text: str) -> list[int]:
        """Ids of `text`.

        Raises:
          RuntimeError: jax has a backend, CUDA's driver is loaded, or this is no worker.
        """
        bridge = sys.modules.get('jax._src.xla_bridge')
        maps = Path('/proc/self/maps')
        driver = 'libcuda.so' in maps.read_text() if maps.exists() else False
        if (
            driver
            or (bridge and bridge.backends_are_initialized())
            or multiprocessing.parent_process() is None
        ):
            raise RuntimeError(
                'expected a worker without an accelerator client, got one with, '
                'or the parent process'
            )
        return self.codec.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return self.codec.decode(ids)
