"""Converts a pi0.5 checkpoint between LeRobot, openpi (PyTorch, JAX) and this project's folder, and
proves it equal.

    python convert_weights.py --checkpoint=lerobot/pi05_base --out=runs/base
    python convert_weights.py --checkpoint=runs/base --out=runs/for_lerobot --layout=lerobot
    python convert_weights.py --checkpoint=runs/base --adapter=PEFT_FOLDER --out=runs/merged
    python convert_weights.py --checkpoint=OPENPI_LORA_STEP --merge_lora --out=runs/merged
    python convert_weights.py verify --checkpoint=runs/base --fixture=FIXTURE
    python convert_weights.py export --workdir=runs/sigma --out=runs/sigma_export

tools/make_fixture.py makes a FIXTURE. An export holds LoRA factors for PEFT, Sigma's heads and,
with --merge, the merged weights.
"""

import argparse
import sys

from rich.console import Console

import sigma_jax as sj
from sigma_jax.cli.command import reports_user_errors
from sigma_jax.cli.tables import show_proof
from sigma_jax.convert.overrides import PROMPTS
from sigma_jax.convert.writers import LAYOUTS

CHECKPOINT = (
    'a .safetensors file, a folder with one, with a sharded set or with orbax params, or a hub id'
)


def convert(flags: argparse.Namespace, console: Console) -> int:
    """Writes another layout of the same weights, or of weights with an adapter merged in."""
    reporter = sj.ConsoleReporter(console, indent='  ')
    done = sj.convert_weights(**vars(flags), reporter=reporter)
    console.print(f'{done.format}: {done.parameters:,} parameters -> {flags.out} ({done.layout})')
    for note in done.notes:
        console.print(f'  {note}', highlight=False)
    return 0


def prove(flags: argparse.Namespace, console: Console) -> int:
    """Prints how far our model is from the numbers of a public implementation; status 1 where they
    differ.
    """
    with console.status(f'{flags.checkpoint}: computing what {flags.fixture} holds'):
        proof = sj.verify(**vars(flags))
    show_proof(proof, console)
    return 0 if proof.passed else 1


def export(flags: argparse.Namespace, console: Console) -> int:
    """Writes what a training run gives to others."""
    with console.status(f'exporting {flags.workdir}'):
        out = sj.export(**vars(flags))
    console.print(f'{out}: ' + ', '.join(sorted(path.name for path in out.iterdir())))
    return 0


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Flags of a conversion."""
    parser.add_argument('--checkpoint', required=True, help=CHECKPOINT)
    parser.add_argument('--out', required=True, help='folder to write; must not exist')
    parser.add_argument(
        '--layout',
        choices=LAYOUTS,
        default='jax',
        help='what to write (default: jax, for train.py and openpi)',
    )
    parser.add_argument(
        '--dtype',
        choices=('stored', 'float32', 'bfloat16'),
        help='bfloat16: the matrices of both Gemmas, as the originals keep it (default: as stored)',
    )
    parser.add_argument(
        '--adapter',
        help='a PEFT adapter (folder or hub id) to merge in; the result is float32, its '
        'statistics those beside it',
    )
    parser.add_argument(
        '--merge_lora',
        action='store_true',
        help="merge the LoRA factors in openpi's own (JAX) checkpoint by openpi's rule; the "
        'result is float32',
    )
    parser.add_argument(
        '--lora_alpha',
        help="their alpha, or two: language model,action expert (default: openpi's own)",
    )
    parser.add_argument('--rslora', action='store_true', help='they were trained rank-stabilised')
    parser.add_argument(
        '--stats', help='statistics from elsewhere: norm_stats.json, a LeRobot policy or data set'
    )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Flags for what stands in openpi's training config alone."""
    parser.add_argument(
        '--action_horizon', type=int, help='actions the policy was trained to give at once'
    )
    parser.add_argument('--sample_steps', type=int, help='steps in which it samples them')
    parser.add_argument(
        '--prompt_state',
        choices=PROMPTS,
        help="the state in the prompt: the robot's own joints, none (openpi: "
        'discrete_state_input=False), or padded',
    )


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Flags of a proof."""
    parser.add_argument('--checkpoint', required=True, help=CHECKPOINT)
    parser.add_argument(
        '--fixture', required=True, help='folder with inputs.npz, outputs.npz, config.json'
    )
    parser.add_argument(
        '--tolerance', type=float, default=1e-4, help='largest relative difference in float32'
    )
    parser.add_argument(
        '--dtype',
        choices=('float32', 'bfloat16'),
        default='float32',
        help='what our model computes in',
    )


def add_export(parser: argparse.ArgumentParser) -> None:
    """Flags of an export."""
    parser.add_argument('--workdir', required=True, help='folder of a training run')
    parser.add_argument('--out', required=True, help='folder to write; must not exist')
    parser.add_argument('--step', type=int, help='which checkpoint (default: the newest)')
    parser.add_argument(
        '--layout',
        choices=('lerobot', 'openpi-pytorch'),
        default='lerobot',
        help='of adapter and merged weights',
    )
    parser.add_argument(
        '--merge',
        action='store_true',
        help='also base and trained weights as one float32 checkpoint',
    )
    parser.add_argument(
        '--with_base', action='store_true', help='also the base, so that the folder acts alone'
    )
    parser.add_argument(
        '--base_model', default='', help='what the adapter names as its base: a hub id or a folder'
    )
    # as it was spelt before
    parser.add_argument('--base-model', default=argparse.SUPPRESS, help=argparse.SUPPRESS)


COMMANDS = {
    'convert': (convert, add_convert),
    'verify': (prove, add_verify),
    'export': (export, add_export),
}


@reports_user_errors
def main() -> None:
    """Entry point; without a command it converts."""
    arguments = sys.argv[1:]
    name = arguments.pop(0) if arguments and arguments[0] in COMMANDS else 'convert'
    command, add_flags = COMMANDS[name]
    program = 'convert_weights.py' if name == 'convert' else f'convert_weights.py {name}'
    parser = argparse.ArgumentParser(
        program,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(parser)
    sys.exit(command(parser.parse_args(arguments), Console()))


if __name__ == '__main__':
    main()
