"""Converts a pi0.5 checkpoint between LeRobot, openpi (PyTorch, JAX) and this project's folder.

python convert_weights.py --checkpoint=assets/pi05_tiny --out=runs/base
python convert_weights.py --checkpoint=runs/base --out=runs/for_lerobot --layout=lerobot
"""

import argparse

from rich.console import Console

from sigma_jax import trees
from sigma_jax.convert import checkpoint
from sigma_jax.scripts import reports_user_errors

LAYOUTS = ('jax', 'lerobot', 'openpi-pytorch')


@reports_user_errors
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--checkpoint', required=True, help='a .safetensors file, or a folder with one or with orbax params'
    )
    parser.add_argument('--out', required=True, help='folder to write; must not exist')
    parser.add_argument('--layout', choices=LAYOUTS, default='jax', help='what to write (default: jax, for train.py)')
    parser.add_argument(
        '--dtype',
        choices=('stored', 'bfloat16'),
        default='stored',
        help='of PyTorch layouts; LeRobot keeps some float32',
    )
    flags = parser.parse_args()
    console = Console()
    with console.status(f'reading {flags.checkpoint}'):
        loaded = checkpoint.load(flags.checkpoint)
    with console.status(f'writing {flags.out}'):
        if flags.layout == 'jax':
            checkpoint.save(loaded, flags.checkpoint, flags.out)
        else:
            checkpoint.save_torch(loaded, flags.out, flags.layout, flags.dtype, flags.checkpoint)
    console.print(f'{loaded.format}: {trees.count(loaded.params):,} parameters -> {flags.out} ({flags.layout})')
    for note in loaded.notes:
        console.print(f'  {note}')


if __name__ == '__main__':
    main()
