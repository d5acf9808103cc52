"""JSON Schema of `sigma_eval_report.json`, and a check of a report against it.

The paper's keys and those of version 1 are required; what was asked for beside them is described
where it is present. Further keys may come. `violations` reads the part of JSON Schema (2020-12)
that is used here, so that no package is needed for it; any validator takes `SCHEMA` as it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sigma_jax.evaluation.metrics import ERRORS

NUMBER: dict[str, Any] = {'type': ['number', 'null']}
COUNT: dict[str, Any] = {'type': 'integer', 'minimum': 0}
TEXT: dict[str, Any] = {'type': 'string'}
NUMBERS: dict[str, Any] = {'type': 'array', 'items': NUMBER}


def record(
    properties: Mapping[str, Any], optional: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """An object with these properties, and perhaps the optional ones.

    Args:
      properties: {name: schema}, all of them needed.
      optional: {name: schema}; None: none.

    Returns:
      The schema.
    """
    known = {**properties, **(optional or {})}
    return {'type': 'object', 'required': list(properties), 'properties': known}


def table_of(values: Any, kind: str = 'object') -> dict[str, Any]:
    """An object of any names, or an array, of equal things.

    Args:
      values: schema of each.
      kind: 'object' or 'array'.

    Returns:
      The schema.
    """
    return (
        {'type': kind, 'additionalProperties': values}
        if kind == 'object'
        else {'type': kind, 'items': values}
    )


def for_errors(values: Any) -> dict[str, Any]:
    """One schema for mse_vec, mse_chk and mse_trj.

    Args:
      values: schema of each.

    Returns:
      The schema.
    """
    return dict.fromkeys(ERRORS, values)


INTERVAL = record({'value': NUMBER, 'low': NUMBER, 'high': NUMBER})
THRESHOLDS = record({'vec': NUMBER, 'chk': NUMBER, 'trj': NUMBER})
LONG = ('vector', 'chunk', 'traj')
SHARED = {
    'num_samples': COUNT,
    'num_batches': COUNT,
    'hard_thresholds': THRESHOLDS,
    'success_thresholds': THRESHOLDS,
}
AVERAGES = {f'avg{hard}_mse_{name}': NUMBER for hard in ('', '_hard') for name in LONG}
PAPER_GROUP = record(
    SHARED
    | AVERAGES
    | {'avg_tau_l2': NUMBER, 'avg_semantic_text_alignment': NUMBER, 'success_rate': NUMBER}
    | {'hard_sample_fraction': NUMBER, 'total_hard_samples': COUNT}
)
METHOD = record(
    for_errors(record({'value': NUMBER, 'low': NUMBER, 'high': NUMBER, 'change': INTERVAL}))
    | {'success_rate': NUMBER, 'hard_sample_fraction': NUMBER, 'by_step': NUMBERS}
    | {'by_episode': record({'episode': NUMBERS, 'num_windows': NUMBERS} | for_errors(NUMBERS))},
    {'tau_l2': NUMBER, 'sem_align': NUMBER},
)
SPLIT = record({'num_windows': COUNT, 'num_episodes': COUNT, 'arms': table_of(METHOD)})
CHECK_A = record({'heads_tensors': COUNT, 'mean': NUMBER, 'std': NUMBER, 'rms': NUMBER})
CHECK_B = table_of(
    record({'batch': COUNT, 'tau_l2': NUMBER, 'sem_align': NUMBER} | for_errors(NUMBER)), 'array'
)
REASONS = ('scale', 'risk', 'ratio', 'drift', 'mis', 'risk_ratio', 'risk_tau', 'risk_mis')
SWEEP = record(
    {
        'rows': table_of(record({'min_scale': NUMBER, 'max_scale': NUMBER}), 'array'),
        'chosen': NUMBER,
    }
)
ADAPTER = record(
    {
        'state': record({'sigma_res': NUMBERS, 'max_scale': NUMBER}),
        'fitted_on': TEXT,
        'mean_scale': table_of(NUMBER),
    }
    | {
        'windows': table_of(
            record({'episode': NUMBERS, 'frame': NUMBERS} | dict.fromkeys(REASONS, NUMBERS))
        )
    },
    {'sweep': SWEEP},
)
EXAMPLE = record(
    {
        'split': TEXT,
        'episode': COUNT,
        'frame': NUMBERS,
        'joints': table_of(TEXT, 'array'),
        'arms': {},
    }
)
COST = record(
    dict.fromkeys(
        ('trainable_parameters', 'steps', 'training_windows', 'flops_own', 'flops_in_all'), NUMBER
    ),
    {'flops_training': NUMBER},
)
CONTRAST = record({'arm': TEXT, 'against': TEXT} | for_errors(INTERVAL))
POOLED = record(
    {'seeds': NUMBERS, 'by_episode': record({'episode': NUMBERS, 'num_windows': NUMBERS})}
    | for_errors(record({'value': NUMBER, 'low': NUMBER, 'high': NUMBER, 'by_seed': NUMBERS}))
)
NAME: dict[str, Any] = {'type': ['string', 'null']}
COMPARISON = record(
    {'split': TEXT, 'num_windows': COUNT, 'num_episodes': COUNT, 'full': NAME, 'no_tau': NAME}
    | {
        'tuned': table_of(TEXT, 'array'),
        'ablations': table_of(TEXT, 'array'),
        'left_out': table_of(TEXT, 'array'),
    }
    | {'rows': table_of(record({'role': TEXT, 'seeds': NUMBERS})), 'compute': table_of(COST)}
    | {'arms': table_of(POOLED), 'contrasts': table_of(CONTRAST, 'array')}
)
VERDICT: dict[str, Any] = {'type': ['boolean', 'null']}
STRESS_ROW = record(
    {'stress': TEXT, 'informative': {'type': 'boolean'}, 'holds': VERDICT, 'mean_scale': NUMBER}
    | dict.fromkeys(('base', 'sigma', 'adapter'), record(for_errors(NUMBER)))
)
STRESS = record(
    {
        'split': TEXT,
        'rows': table_of(STRESS_ROW, 'array'),
        'without_stress': record({'holds': VERDICT}),
    }
)
CHANGED_METHOD = record(for_errors(record({'value': NUMBER, 'change': INTERVAL})))
ROBUSTNESS_ROW = record(
    {'kind': TEXT, 'level': NUMBER, 'name': TEXT, 'arms': table_of(CHANGED_METHOD)}
)
ROBUSTNESS = record(
    {'split': TEXT, 'base_samples': COUNT, 'rows': table_of(ROBUSTNESS_ROW, 'array')}
)

SCHEMA: dict[str, Any] = {
    '$schema': 'https://json-schema.org/draft/2020-12/schema',
    'title': 'sigma_eval_report.json',
    **record(
        {'schema': {'const': 'sigma_jax.evaluation'}, 'schema_version': {'const': 2}}
        | SHARED
        | {'windows_of': table_of(TEXT, 'array'), 'sigma': PAPER_GROUP, 'pi05_base': PAPER_GROUP}
        | {'check_a': table_of(CHECK_A), 'check_b': table_of(CHECK_B), 'splits': table_of(SPLIT)}
        | {'telepathy_by_adapter': table_of(table_of({'type': 'object'})), 'example': EXAMPLE}
        | {'adapter': {'anyOf': [ADAPTER, {'type': 'null'}]}, 'provenance': {'type': 'object'}},
        {
            'comparison': COMPARISON,
            'stress': STRESS,
            'robustness': ROBUSTNESS,
            'compute': table_of(COST),
        },
    ),
}

TYPES: dict[str, Any] = {
    'object': Mapping,
    'array': list,
    'string': str,
    'integer': int,
    'number': (int, float),
    'boolean': bool,
    'null': type(None),
}


def check_report(report: Mapping[str, Any]) -> None:
    """Checks that a report is as `SCHEMA` has it.

    Args:
      report: of `measure.evaluate`.

    Raises:
      ValueError: it is not; names the first place.
    """
    if found := violations(report, SCHEMA):
        raise ValueError(
            f'a report must follow its schema, but {found[0]}; correct the code or the schema'
        )


def violations(value: Any, schema: Mapping[str, Any], where: str = 'report') -> list[str]:
    """What is wrong with `value`, each with its place; [] where it follows the schema.

    Args:
      value: any JSON.
      schema: that it is to follow.
      where: its place, for messages.

    Returns:
      Sentences.
    """
    if 'anyOf' in schema:
        options = [violations(value, option, where) for option in schema['anyOf']]
        return [] if [] in options else options[0]
    if 'const' in schema and value != schema['const']:
        return [f'{where} is {value!r} and not {schema["const"]!r}']
    if 'type' in schema and not any(is_a(value, kind) for kind in names(schema['type'])):
        return [f'{where} is a {type(value).__name__} and no {" or ".join(names(schema["type"]))}']
    found = [f'{where}.{key} is missing' for key in schema.get('required', ()) if key not in value]
    if 'minimum' in schema and value < schema['minimum']:
        found.append(f'{where} is below {schema["minimum"]}')
    if isinstance(value, Mapping):
        others = schema.get('additionalProperties', {})
        for key, inner in value.items():
            found += violations(
                inner, schema.get('properties', {}).get(key, others), f'{where}.{key}'
            )
    elif isinstance(value, list) and 'items' in schema:
        for n, inner in enumerate(value):
            found += violations(inner, schema['items'], f'{where}[{n}]')
    return found


def names(kinds: str | Sequence[str]) -> Sequence[str]:
    """The types that a schema allows.

    Args:
      kinds: `type` of a schema.

    Returns:
      Their names.
    """
    return [kinds] if isinstance(kinds, str) else kinds


def is_a(value: Any, kind: str) -> bool:
    """Whether a value is of a JSON type; true and false are no numbers, 2.0 is an integer.

    Args:
      value: any JSON.
      kind: name of the type.

    Returns:
      Whether it is.
    """
    if isinstance(value, bool):
        return kind == 'boolean'
    if kind == 'integer' and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, TYPES[kind])
