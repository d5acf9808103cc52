"""How busy real shards keep a training step: its time on a batch that lies there against its time
fed by the loader.
"""

import dataclasses
import time
from typing import Any

from benchmarks import train_cases
from sigma_jax.data.loader.loader import make_loader
from sigma_jax.data.loader.sequences import Order
from sigma_jax.data.loader.windows import shards_processor
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.processing.tokenizer import load_tokenizer
from sigma_jax.types import to_batch


def open_loader(case: train_cases.Case, shards: str, workers: int) -> Any:
    """One pass over the training windows, shuffled, every image decoded, as `train.py` reads
    them.
    """
    tokenizer = load_tokenizer(train_cases.settings(case)['tokenizer'])
    opened = open_shards(shards)
    order = Order(case.batch // case.windows, case.windows, shuffle=True, drop_remainder=True)
    processor = shards_processor(opened, tokenizer)
    return make_loader(opened.split('train'), processor, order, num_workers=workers)


def measure(case: dict, shards: str, workers: int) -> dict[str, Any]:
    """Steps over one whole pass, then as many on one batch; neither waits for a step before it
    starts the next.

    `busy` is the share of the first in which the second would have been done: what the GPU is busy
    with.
    """
    described = train_cases.Case(**case)
    loader = iter(open_loader(described, shards, workers))
    program = train_cases.build(described, to_batch(next(loader)))
    program.call()
    start, steps = time.perf_counter(), 0
    for arrays in loader:
        program.start(to_batch(arrays))
        steps += 1
    program.wait()
    fed = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(steps):
        program.start()
    program.wait()
    fixed = time.perf_counter() - start
    return {
        'busy': fixed / fed,
        'steps': steps,
        'ms': 1e3 * fixed / steps,
        'fed_ms': 1e3 * fed / steps,
        'per_s': described.batch * steps / fed,
        **dataclasses.asdict(described),
    }
