r"""What does an NF4 base cost? Flow-matching LoRA beside the same base in bfloat16 and in NF4, on
the same batches.

    python benchmarks/nf4_loss.py --config=configs/pi05_lora.py --base=runs/mid_size \
        --shards=runs/shards
    python benchmarks/nf4_loss.py --base=demo_run/base --shards=demo_run/shards \
        --tile=32  # tiny, after `make demo`

Prints the mean loss of the last steps of both runs, their ratio, and whether it is within the
limit; status 1 where it is not. Seeds, batches, noise and dropout are the same in both; nothing is
written.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from sigma_jax.cli.command import load, reports_user_errors  # noqa: E402
from sigma_jax.nn import quant  # noqa: E402
from sigma_jax.training.config import RunConfig  # noqa: E402
from sigma_jax.training.run import Run  # noqa: E402
from sigma_jax.types import to_batch  # noqa: E402

KINDS = ('bfloat16', 'nf4')
BOTH = (r'.*/attn/(q|kv|attn_vec)_einsum(_1)?/w',)  # q, k, v, output of both experts


def settings(flags: argparse.Namespace, kind: str) -> dict[str, Any]:
    """The config of one of the two runs: they differ in `quant.kind` alone."""
    config = dict(load(flags.config)) | {
        'objective': 'flow_matching',
        'trainable': ('lora',),
        'sequence_length': 1,
    }
    given = {
        'base': flags.base,
        'shards': flags.shards,
        'tokenizer': flags.tokenizer,
        'batch_size': flags.batch,
    }
    config |= {key: value for key, value in given.items() if value} | {
        'steps': flags.steps,
        'seed': flags.seed,
    }
    config['lora'] = config['lora'] | {'patterns': BOTH}
    config['quant'] = config['quant'] | {'kind': kind, 'tile': flags.tile}
    return config


def losses(config: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """Loss of every step [steps], and bytes of the base on the device."""
    run = Run(RunConfig.from_dict(config))
    batches, found = iter(run.loader), []
    for _ in range(config['steps']):
        batch = run.devices.shard_batch(to_batch(next(batches)))
        run.state, metrics = run.step(run.state, run.frozen, batch, run.ablation)
        found.append(metrics['loss'])
    return np.asarray(jax.device_get(found)), quant.size(run.frozen.params)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--config', default='configs/sigma_so101.py', help='optimizer, model.dtype and the rest'
    )
    parser.add_argument('--base', default='', help="folder of a converted pi0.5; '': the config's")
    parser.add_argument('--shards', default='', help="folder of prepare_data.py; '': the config's")
    parser.add_argument('--tokenizer', default='', help="'': the config's")
    parser.add_argument('--batch', type=int, default=0, help="windows a step; 0: the config's")
    parser.add_argument('--steps', type=int, default=200)
    parser.add_argument('--last', type=int, default=20, help='steps that the means are over')
    parser.add_argument(
        '--tile', type=int, default=64, help="inputs that share one of NF4's scales"
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--limit', type=float, default=3.0, help='per cent by which NF4 may be worse'
    )
    return parser.parse_args()


@reports_user_errors
def main() -> None:
    """Entry point."""
    flags = parse()
    means = {}
    for kind in KINDS:
        curve, size = losses(settings(flags, kind))
        means[kind] = float(curve[-flags.last :].mean())
        first = float(curve[: flags.last].mean())
        print(
            f'{kind}: base {size / 2**20:.1f} MiB; mean loss of the first {flags.last} steps '
            f'{first:.5f}, of the last {means[kind]:.5f}',
            flush=True,
        )
    change = 100 * (means['nf4'] / means['bfloat16'] - 1)
    within = change <= flags.limit
    print(
        f'nf4 / bfloat16 = {means["nf4"] / means["bfloat16"]:.4f} after {flags.steps} steps on',
        end=' ',
    )
    print(
        f'{jax.devices()[0].device_kind}: {change:+.2f} %, '
        f'{"within" if within else "NOT within"} {flags.limit:g} %'
    )
    sys.exit(0 if within else 1)


if __name__ == '__main__':
    main()
