"""The evaluation report as one self-contained HTML page: a sentence, a table, then the evidence.

Reads only `sigma_eval_report.json` (as a dict) and the columns of `train_log.csv`, so that any
stored run can be rendered again. Figures are SVG in base64; the page loads nothing.
"""

import csv
import html
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from sigma_jax.evaluation.report import contrasts as compared
from sigma_jax.evaluation.report import figures, forest, tables, trials
from sigma_jax.evaluation.report.tables import image

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', sans-serif; color: #1d1d1f;
  background: #fff; margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 46rem; }
h1 { font-size: 1rem; font-weight: 600; color: #666; margin: 0 0 .6rem; }
.verdict { font-size: 1.35rem; line-height: 1.35; font-weight: 600; margin: 0 0 .6rem; }
h2 { font-size: 1.12rem; margin: 2.6rem 0 .4rem; border-top: 1px solid #e4e4e4;
  padding-top: 1.1rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p, li { max-width: 42rem; } .note { color: #666; font-size: .88rem; }
.warn { background: #fff4e5; border-left: 4px solid #d9762b; padding: .6rem .8rem; }
img { width: 100%; height: auto; display: block; margin: .5rem 0; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums;
  width: 100%; }
th, td { text-align: right; padding: .3rem .55rem; border-bottom: 1px solid #ececec;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
th { font-weight: 600; border-bottom: 1px solid #bbb; } small { color: #777; font-weight: 400; }
td small { white-space: nowrap; font-size: .78rem; }
tr.mark td { background: #eef4fb; } .good { color: #17703f; } .bad { color: #b3261e; }
@media (max-width: 32rem) {
  body { padding: .9rem .6rem 3rem; } .verdict { font-size: 1.15rem; } table { font-size: .78rem; }
  th, td { padding: .25rem .2rem; } td small { font-size: .62rem; letter-spacing: -.01em; } }
details { margin: .8rem 0; } summary { cursor: pointer; font-weight: 600; }
details td:nth-child(2) { overflow-wrap: anywhere; }
"""

NOTES = """<ul class=note>
<li>Errors are mean squared errors in squared raw robot units. The definitions are ours, since the
paper gives no lengths: mse_vec is the first action of a window, mse_chk its first actions up to the
chunk length, mse_trj all of them.</li>
<li>The paper evaluated on the windows that it trained on. Here episodes are split: means, bias fit
and normalisation come from train, every choice and the adapter from calibration; test is only
measured.</li>
<li>Intervals: 95 %, bootstrap over whole episodes, paired with the base on the same windows.</li>
<li>pi05 is the frozen base; pi05_bias adds an affine fit per joint and step made on training
windows; hold repeats the state; mean is the mean training action of each step. sigma carries its
memory through whole episodes, sigma_reset starts anew as often as training did. sigma_tau_off
switches telepathy off in the same checkpoint: a switch at inference, not a model trained without
it.</li></ul>"""


def read_log(path: Path) -> dict[str, Float[np.ndarray, 'n']]:
    """Columns of a training log with Table 1's names; {} where there is none. Cells that are no
    numbers are NaN.

    Args:
      path: train_log.csv.

    Returns:
      {column: values}.
    """
    if not path.is_file():
        return {}
    with path.open(newline='', errors='replace') as file:
        rows = list(csv.DictReader(file))
    names = [key for key in rows[0] if key] if rows else []
    return {key: np.asarray([_number(row[key]) for row in rows]) for key in names}


def _number(cell: str | None) -> float:
    try:
        return float(cell or 'nan')
    except ValueError:
        return float('nan')


def render(report: Mapping, log: Mapping[str, Float[np.ndarray, 'n']]) -> str:
    """The page as text.

    Args:
      report: of `measure.evaluate`.
      log: of `read_log`.

    Returns:
      HTML.
    """
    first = comparison_screen(report) if report.get('comparison') else first_screen(report)
    parts = [first, error_section(report), training_section(log), episode_section(report)]
    parts += [
        trials.stress_section(report.get('stress')),
        trials.robustness_section(report.get('robustness')),
    ]
    body = '\n'.join([*parts, paper_section(report), provenance_section(report)])
    return (
        '<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport '
        'content="width=device-width, initial-scale=1"><title>Sigma against its '
        f'base</title><style>{STYLE}</style></head><body>{body}</body></html>\n'
    )


def first_screen(report: Mapping) -> str:
    """The question, its answer in a sentence, and the table.

    Args:
      report: of `measure.evaluate`.

    Returns:
      HTML.
    """
    name = tables.headline_split(report)
    sentence = html.escape(tables.verdict(report)).replace(' %', '&nbsp;%')
    return (
        '<h1>Does Sigma beat its base on held-out episodes?</h1>'
        f'<p class=verdict>{sentence}</p>'
        f'<p>{html.escape(tables.against_simple(report))} {html.escape(test_reads(report))}</p>'
        + tables.methods_table(report['splits'][name])
        + f'<p class=note>Split: {name}. Small print: change against pi05, its 95 % interval in '
        'per cent.</p>'
    )


def comparison_screen(report: Mapping) -> str:
    """Whether telepathy helps: a sentence, a table, a forest plot; then all methods, and the
    checkpoint shown below.

    Args:
      report: of `measure.evaluate`.

    Returns:
      HTML.
    """
    c = report['comparison']
    sentence = html.escape(compared.telepathy_verdict(c)).replace(' %', '&nbsp;%')
    parts, references = compared.parts_of(c), compared.references_of(c)
    others = [x for x in c['contrasts'] if x not in parts and x not in references]
    shown = report['provenance']
    steps = {
        name: c['arms'][name]
        for name in (compared.BASE, *c['tuned'], c['full'], c['no_tau'])
        if name in c['arms']
    }
    return (
        '<h1>Does telepathy help?</h1><p '
        f'class=verdict>{sentence}</p><p>{html.escape(compared.reading(c))}</p>'
        + figure_of(parts, c['no_tau'], 'what each part of Sigma is worth')
        + f'<p>{html.escape(compared.gain_verdict(c))} {html.escape(test_reads(report))}</p>'
        + '<h2>Against base and '
        f'fine-tuning</h2>{figure_of(references, None, "Sigma against other policies")}'
        + f'<h2>All methods</h2>{compared.methods_table(c)}<p class=note>Means over seeds; small '
        'print: change against pi05 with its 95 % interval over seeds and episodes. Rows: '
        + f'{compared.rows_note(c)}</p><h3>Error by step of the window</h3>'
        + f'{image(figures.error_by_step(steps), "error by step, methods pooled over seeds")}'
        + f'<h3>Parameters and compute, a window</h3>{compared.cost_table(c["compute"])}'
        + '<details><summary>All other '
        f'contrasts</summary>{compared.contrast_table(others)}</details>'
        + f'<h2>One checkpoint: {html.escape(str(c["full"] or next(iter(c["rows"]))))}, seed '
        f'{shown.get("seed")}</h2>'
        + f'<p>{html.escape(tables.verdict(report))}</p>'
        + tables.methods_table(report['splits'][tables.headline_split(report)])
    )


def figure_of(contrasts: list, marked: str | None, caption: str) -> str:
    """A table of contrasts and their forest plot; nothing where there are none.

    Args:
      contrasts: of the report.
      marked: the method that stands out; None: none.
      caption: of the plot.

    Returns:
      HTML.
    """
    if not contrasts:
        return ''
    return compared.contrast_table(contrasts, marked) + image(
        forest.contrasts(contrasts, marked), caption
    )


def test_reads(report: Mapping) -> str:
    """How often the test split has been evaluated for this run, where that was counted.

    Args:
      report: of `measure.evaluate`.

    Returns:
      HTML.
    """
    reads = report['provenance'].get('test_reads')
    return '' if reads is None else f'Times the test split of this run was read: {reads}.'


def error_section(report: Mapping) -> str:
    """Forest plot, error by step, rates and the other splits.

    Args:
      report: of `measure.evaluate`.

    Returns:
      HTML.
    """
    name = tables.headline_split(report)
    split, costs = report['splits'][name], report.get('compute')
    others = ''.join(
        f'<h3>{other}: {tables.size(values)}</h3>' + tables.methods_table(values)
        for other, values in report['splits'].items()
        if other != name
    )
    changes = image(figures.forest(split['arms']), 'change of each method against pi05')
    steps = image(figures.error_by_step(split['arms']), 'error by horizon step')
    return (
        f'<h2>How large is the difference?</h2>{changes}'
        f'<h3>Error by step of the window</h3>{steps}'
        f'<h3>Telepathy switch × adapter, one checkpoint</h3>{tables.switch_table(report)}'
        '<details><summary>Rates, tau and alignment of every method</summary>'
        f'{tables.rates_table(split)}</details>'
        + (
            f'<h3>Parameters and compute, a window</h3>{compared.cost_table(costs)}'
            if costs
            else ''
        )
        + (f'<details open><summary>The other splits</summary>{others}</details>' if others else '')
    )


def training_section(log: Mapping[str, Float[np.ndarray, 'n']]) -> str:
    """Loss terms and the norm of tau over training, the columns of the paper's Table 1.

    Args:
      log: of `read_log`.

    Returns:
      HTML.
    """
    if not log or 'step' not in log:
        return '<h2>Training</h2><p class=note>No training log lay beside this checkpoint.</p>'
    note = (
        'Columns as in Table 1 of the paper; L_act already holds the hard-sample term. Bold '
        'lines: running mean.'
    )
    figure = image(figures.training_curves(log), 'loss terms over optimiser steps')
    return f'<h2>Training</h2>{figure}<p class=note>{note}</p>'


def episode_section(report: Mapping) -> str:
    """One episode: trajectories, norm of tau, adapter scale.

    Args:
      report: of `measure.evaluate`.

    Returns:
      HTML.
    """
    shown = report['example']
    text = f'Episode {shown["episode"]} of {shown["split"]}, the one with the median Sigma error.'
    parts = [
        f'<h2>One episode</h2><p class=note>{text} Windows are laid end to end, each from its own '
        'observation.</p>',
        image(figures.trajectories(shown), 'trajectories of each joint: truth, base, Sigma'),
        '<h3>Norm of tau over the episode</h3>',
        image(figures.tau_over_episode(shown), 'norm of tau over an episode'),
    ]
    recorded = ((report['adapter'] or {}).get('windows') or {}).get(shown['split'])
    if recorded:
        parts.append('<h3>Adapter scale</h3>')
        parts.append(
            image(
                figures.adapter_scale(recorded, shown['episode']), 'adapter scale over the episodes'
            )
        )
        parts.append(
            '<p class=note>All episodes of the split; the one above strong. 0 is the '
            'base, 1 is Sigma.</p>'
        )
    parts.append(trials.sweep_section(report['adapter']))
    return ''.join(parts)


def paper_section(report: Mapping) -> str:
    """The paper's own protocol and checks, next to its numbers.

    Args:
      report: of `measure.evaluate`.

    Returns:
      HTML.
    """
    pooled = ', '.join(report['windows_of'])
    return (
        f'<h2>By the protocol of the paper</h2><p class=note>All windows of {pooled} together, as '
        'in its sigma_eval_report.json. Not comparable in size: another base, other data, other '
        'units, and our definitions of the three '
        f'errors.</p>{tables.paper_table(report)}<h3>CHECK A: the telepathy heads</h3><p '
        'class=note>Equal by construction: both groups load the same '
        f'heads.</p>{tables.check_a_table(report)}<h3>CHECK B: single '
        f'batches</h3>{tables.check_b_table(report)}'
    )


def provenance_section(report: Mapping) -> str:
    """Definitions, then everything that says where the numbers come from.

    Args:
      report: of `measure.evaluate`.

    Returns:
      HTML.
    """
    provenance = dict(report['provenance'])
    config = provenance.pop('config', None) or {}
    large = ('spread', 'directions', 'weights')
    fitted = (report['adapter'] or {}).get('state') or {}
    adapter = (
        {'adapter': {key: x for key, x in fitted.items() if key not in large}} if fitted else {}
    )
    facts = provenance | adapter | {'schema': f'{report["schema"]} {report["schema_version"]}'}
    return f'<h2>What the numbers mean</h2>{NOTES}<h2>Provenance</h2>{tables.flat_table(facts)}' + (
        f'<details><summary>Configuration</summary>{tables.flat_table(config)}</details>'
        if config
        else ''
    )
