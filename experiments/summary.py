"""What of an evaluation is worth keeping under version control: sentences and tables as Markdown,
two forest plots.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sigma_jax.evaluation.metrics import ERRORS
from sigma_jax.evaluation.report import contrasts, forest
from sigma_jax.evaluation.report.tables import change_text, number
from sigma_jax.evaluation.report.trials import verdicts
from sigma_jax.evaluation.runner import PAGE, REPORT
from sigma_jax.files import atomic_write

NAME, PARTS, AGAINST = 'README.md', 'parts.svg', 'against.svg'
NAMED = {'base': 'base_digest', 'shards': 'shards_digest', 'commit': 'commit'}


def write_summary(folder: pathlib.Path, out: pathlib.Path, size: str) -> list[pathlib.Path]:
    """Summarises `folder`, where evaluate.py wrote a comparison, into `out`; returns the files
    written.
    """
    report = json.loads((folder / REPORT).read_text())
    found = report['comparison']
    files = {
        NAME: markdown(report, size),
        PARTS: forest.contrasts(contrasts.parts_of(found), found['no_tau']),
        AGAINST: forest.contrasts(contrasts.references_of(found)),
        PAGE: (folder / PAGE).read_text(),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        atomic_write(out / name, text)
    return [out / name for name in files]


def markdown(report: Mapping, size: str) -> str:
    """The page's first screens and its verdicts, as text."""
    c, made = report['comparison'], report['provenance']
    digests = [f'{what} {short(made[key])}' for what, key in NAMED.items() if made.get(key)]
    where = f'{c["num_windows"]} windows of {contrasts.episodes(c)}'
    parts = [
        f'# Does telepathy help? ({size} base)',
        contrasts.telepathy_verdict(c),
        contrasts.reading(c),
        contrasts.gain_verdict(c),
        '## What each part is worth\n\nChange of the error of full Sigma against the same model '
        'trained without the part, in per cent, with 95 % intervals over seeds and episodes '
        f'({where}).',
        contrast_rows(contrasts.parts_of(c)),
        f'![forest plot of the parts]({PARTS})',
        '## Against base and fine-tuning',
        contrast_rows(contrasts.references_of(c)),
        f'![forest plot of the references]({AGAINST})',
        '## All methods\n\nMean squared errors in squared degrees and per cent of gripper opening, '
        'means over seeds.',
        arm_rows(c),
        *trials(report),
        f'{", ".join(digests)}. Everything else is in `{PAGE}`.'.removeprefix('. '),
    ]
    return '\n\n'.join(part for part in parts if part) + '\n'


def short(digest: str) -> str:
    """The first digits, and the '+' of a changed source."""
    return digest[:12] + '+' * digest.endswith('+')


def contrast_rows(found: Sequence[Mapping]) -> str:
    """A row a contrast."""
    rows = [
        [f'{c["arm"]} against {c["against"]}', *(interval(c[key]) for key in ERRORS)] for c in found
    ]
    return table(('change, %', *ERRORS), rows)


def interval(change: Mapping[str, Any]) -> str:
    """'−20.0 [−25.1, −14.2]'; bold where the interval excludes zero."""
    value = change_text(change['value'], unit='')
    if change['low'] is None:
        return value
    said = f'{value} [{contrasts.limits_text(change)}]'
    return f'**{said}**' if change['low'] > 0 or change['high'] < 0 else said


def arm_rows(found: Mapping) -> str:
    """Every method with its seeds, parameters that learn and arithmetic of its training."""
    rows = []
    for name, method in found['arms'].items():
        cost = found['compute'].get(name, {})
        said = (
            contrasts.thousands(cost.get('trainable_parameters')),
            contrasts.operations(cost.get('flops_training')),
        )
        rows.append(
            [
                name,
                str(len(method['seeds']) or '–'),
                *(number(method[key]['value']) for key in ERRORS),
                *said,
            ]
        )
    return table(('method', 'seeds', *ERRORS, 'trainable', 'training'), rows)


def trials(report: Mapping) -> list[str]:
    """Stress and robustness, where they were asked for."""
    parts = []
    if stress := report.get('stress'):
        parts += [
            '## The adapter under stress',
            '\n'.join(f'- {line}' for line in verdicts(stress)),
        ]
    if robust := report.get('robustness'):
        rows = robust['rows']
        cells = [
            [row['name'], *(number(method['mse_trj']['value']) for method in row['arms'].values())]
            for row in rows
        ]
        parts += ['## Robustness: mse_trj', table(('observation', *rows[0]['arms']), cells)]
    return parts


def table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    head = list(header)
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
