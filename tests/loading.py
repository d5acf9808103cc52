"""A loader in one flat call: what a test leaves out has its default."""

import dataclasses
from typing import Any

from sigma_jax.data.loader.batches import Batches
from sigma_jax.data.loader.loader import make_loader as make
from sigma_jax.data.loader.sequences import Order
from sigma_jax.data.loader.windows import Contents, shards_processor
from sigma_jax.data.shards.directory import Split
from sigma_jax.processing.tokenizer import Tokenizer


def make_loader(
    split: Split, tokenizer: Tokenizer, num_workers: int = 0, **settings: Any
) -> Batches:
    """Settings are those of `Order`, `Contents`, `shards_processor`, and of the `Processor`."""

    def taken(kind: type) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(kind)}
        return {name: settings.pop(name) for name in names & set(settings)}

    order, contents = Order(**taken(Order)), Contents(**taken(Contents))
    seen = {name: settings.pop(name) for name in ('norm_stats', 'policy') if name in settings}
    processor = shards_processor(split.shards, tokenizer, **seen)
    processor = dataclasses.replace(processor, **settings)
    return make(split, processor, order, contents, num_workers)
