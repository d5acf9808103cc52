"""Checkpoints of models that are not read, known by names that only they have."""

import re
from collections.abc import Collection

from sigma_jax.backbones import kinds
from sigma_jax.errors import UserError, few

MARKS = {  # the first that some name matches; names of tensors or paths of leaves
    r'(.*\.)?vlm_with_expert\..*': 'SmolVLA',
    r'(.*\.)?(_groot_model|backbone\.eagle_model|action_head\.action_encoder)\..*': 'GR00T',
    r'(.*[./])?(state_proj|action_time_mlp_(in|out))[./].*': 'π0',
    r'(.*\.)?pi0_paligemma\..*': 'π0-FAST',
}
PALIGEMMA = re.compile(
    r'(.*\.)?(multi_modal_projector|language_model\.(model\.)?layers)\..*|PaliGemma/llm/.*'
)
FACTORS = {'lora_A', 'lora_B', 'base_layer', 'lora_magnitude_vector'}  # parts of PEFT's names
HEAD = re.compile(r'(.*[./])?action_in_proj[./].*')


def refuse(names: Collection[str], where: str) -> None:
    """Refuses the weights of other models.

    Args:
      names: of the tensors.
      where: they are from, for messages.

    Raises:
      UserError: they are another model's.
    """
    if kinds.of_names(names) is not None:
        return
    for mark, model in MARKS.items():
        if found := [one for one in names if re.fullmatch(mark, one)]:
            parts = sorted({_short(one, mark) for one in found}, reverse=True)
            raise _refused(where, f'a {model} (it has {few(parts, ", ")})')
    if any(map(PALIGEMMA.fullmatch, names)) and not any(map(HEAD.fullmatch, names)):
        raise _refused(where, 'a PaliGemma or π0-FAST (it has no action expert: no action_in_proj)')


def refuse_unmerged(names: Collection[str], where: str) -> None:
    """Refuses weights with PEFT's factors still beside them.

    Args:
      names: of the tensors.
      where: they are from, for messages.

    Raises:
      UserError: they are.
    """
    if found := sorted(name for name in names if FACTORS & set(name.split('.'))):
        raise UserError(
            f'expected weights in {where}, got LoRA factors of PEFT beside their base '
            f'({few(found, ", ")}); merge them before saving (merge_and_unload), or save the '
            'adapter alone and name it with --adapter'
        )


def _refused(where: str, what: str) -> UserError:
    return UserError(
        f'expected a π0.5 in {where}, got {what}; sigma_jax reads π0.5 alone: choose '
        'such a checkpoint'
    )


def _short(name: str, mark: str) -> str:
    """The part of a name that marks the model: `state_proj` of `model.state_proj.weight`."""
    match = re.fullmatch(mark, name)
    return (
        match[2]
        if match and match.re.groups > 1
        else next(part for part in name.split('.') if part in mark)
    )
