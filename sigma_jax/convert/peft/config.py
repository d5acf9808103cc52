"""`adapter_config.json` of the PEFT library: which modules a LoRA adapter changes and how
strongly.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from sigma_jax.errors import UserError
from sigma_jax.nn.lora import LoraConfig

CONFIG = 'adapter_config.json'
# Settings with which an adapter is more than A and B on frozen weights; false, null and empty ones
# do no harm.
REFUSED = (
    *(
        'use_dora',
        'lora_bias',
        'use_qalora',
        'use_bdlora',
        'modules_to_save',
        'trainable_token_indices',
    ),
    *(
        'target_parameters',
        'layer_replication',
        'alora_invocation_tokens',
        'arrow_config',
        'kasa_config',
    ),
    'monteclora_config',
)
# starts that change the base weights too
REBASING = ('pissa', 'olora', 'loftq', 'corda', 'lora_ga')
MEND = 'copy the adapter again, or save it anew with peft'


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """What counts of an adapter's settings; names as in PEFT's `LoraConfig`."""

    r: int
    lora_alpha: float
    lora_dropout: float = 0.0
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()

    def rank(self, module: str) -> int:
        """r of one module; the first pattern that matches the end of its name counts.

        Args:
          module: its name.

        Returns:
          The rank.
        """
        return int(_first_match(self.rank_pattern, module, self.r))

    def alpha(self, module: str, rank: int, padded: int) -> float:
        """The alpha with which factors padded to a larger rank are as strong: PEFT scales B A by
        alpha / rank, or by alpha / sqrt(rank) with `use_rslora`, and our factors by alpha / padded.

        Args:
          module: its name.
          rank: of its factors.
          padded: the larger rank.

        Returns:
          Our alpha.
        """
        alpha = float(_first_match(self.alpha_pattern, module, self.lora_alpha))
        return alpha * (math.sqrt(rank) if self.use_rslora else 1) * (padded / rank)

    def selects(self, module: str) -> bool | None:
        """Whether PEFT would adapt a module of this name; None where the settings do not say.

        Args:
          module: its name.

        Returns:
          Whether it would.
        """
        if self.target_modules in (None, 'all-linear'):
            return None
        if self.exclude_modules and _named(self.exclude_modules, module):
            return False
        if not _named(self.target_modules, module):
            return False
        return isinstance(self.target_modules, str) or self._takes_layer(module)

    def _takes_layer(self, module: str) -> bool:
        """Whether the module lies in one of `layers_to_transform`; PEFT ignores them beside a
        regular expression.
        """
        if not self.layers_to_transform:
            return True
        patterns = self.layers_pattern or (r'[^.]*',)
        found = (re.match(rf'(?:.*?\.)?{pattern}\.(\d+)\.', module) for pattern in patterns)
        return any(one is not None and int(one[1]) in self.layers_to_transform for one in found)


def _named(names: str | tuple[str, ...], module: str) -> bool:
    """PEFT's rule: a string is a regular expression of whole names, a list has names and ends of
    names.
    """
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f'.{name}') for name in names)


def _first_match(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    return next(
        (value for key, value in patterns.items() if re.match(rf'(.*\.)?({key})$', module)), default
    )


def read(folder: pathlib.Path) -> PeftConfig:
    """Reads `adapter_config.json`.

    Args:
      folder: of the adapter.

    Returns:
      The settings.

    Raises:
      UserError: a damaged file, or no plain LoRA.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise UserError(
            f'expected {CONFIG} in {folder}, got no such file; give the folder that peft saved'
        )
    try:
        data = dict(json.loads(file.read_text()))
        check_plain(data, file)
        found = _parse(data)
        found.selects('x'), found.rank('x'), found.alpha('x', 1, 1)  # compiles every pattern
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, re.error) as error:
        raise UserError(
            f'expected the settings of a LoRA adapter in {file}, got {_said(error)}; {MEND}'
        ) from error
    if found.r < 1 or not all(isinstance(x, int) and x > 0 for x in found.rank_pattern.values()):
        raise UserError(
            f'expected ranks of at least 1 in {file}, got {found.r}, '
            f'{dict(found.rank_pattern)}; {MEND}'
        )
    return found


def check_plain(data: Mapping[str, Any], file: pathlib.Path) -> None:
    """Checks that settings are those of plain A and B on frozen weights.

    Args:
      data: the parsed file.
      file: it is from, for messages.

    Raises:
      UserError: some are not; names every one.
    """
    bad = [f'{key}={data[key]!r}' for key in REFUSED if data.get(key)]
    bad += [f'bias={data["bias"]!r}'] if data.get('bias', 'none') != 'none' else []
    start = data.get('init_lora_weights', True)
    bad += (
        [f'init_lora_weights={start!r}']
        if isinstance(start, str) and start.startswith(REBASING)
        else []
    )
    if data['peft_type'] != 'LORA':
        bad = [f'peft_type={data["peft_type"]!r}']
    if bad:
        raise UserError(
            f'expected a plain LoRA adapter in {file}, got {", ".join(bad)}: it changes more than '
            'A and B; merge it with peft (merge_and_unload) and convert the merged weights'
        )


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else repr(error)


def _parse(data: Mapping[str, Any]) -> PeftConfig:
    def several(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    layers = data.get('layers_to_transform')
    pattern = data.get('layers_pattern') or ()
    for name in ('r', 'lora_alpha'):
        if isinstance(data[name], bool) or not isinstance(data[name], int | float):
            raise ValueError(f'{name} {data[name]!r}, no number')
    return PeftConfig(
        r=int(data['r']),
        lora_alpha=float(data['lora_alpha']),
        lora_dropout=float(data.get('lora_dropout') or 0.0),
        use_rslora=bool(data.get('use_rslora')),
        rank_pattern=dict(data.get('rank_pattern') or {}),
        alpha_pattern=dict(data.get('alpha_pattern') or {}),
        target_modules=several(data.get('target_modules')),
        exclude_modules=several(data.get('exclude_modules')),
        layers_to_transform=None
        if layers is None
        else tuple([layers] if isinstance(layers, int) else layers),
        layers_pattern=(pattern,) if isinstance(pattern, str) else tuple(pattern),
    )


def to_json(lora: LoraConfig, target_modules: str, base: str) -> dict[str, Any]:
    """The settings as PEFT >= 0.9 reads them.

    Args:
      lora: rank and strength.
      target_modules: a pattern.
      base: name or folder of the adapted checkpoint.

    Returns:
      For JSON.
    """
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    return {
        'peft_type': 'LORA',
        'task_type': None,
        'auto_mapping': None,
        'base_model_name_or_path': base or None,
        'revision': None,
        'inference_mode': True,
        'r': lora.rank,
        'lora_alpha': alpha,
        'lora_dropout': lora.dropout,
        'target_modules': target_modules,
        'fan_in_fan_out': False,
        'bias': 'none',
        'use_rslora': False,
        'use_dora': False,
        'modules_to_save': None,
        'init_lora_weights': True,
        'layers_to_transform': None,
        'layers_pattern': None,
        'rank_pattern': {},
        'alpha_pattern': {},
    }
