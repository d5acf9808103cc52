"""One table between pi0.5's PyTorch names (LeRobot, openpi) and openpi's JAX paths, readable both ways.

A rule says which tensor fills which slice of a leaf, and in which form. `{n}` in a name runs over the layers
stacked on axis 0; `stack` is the index within a leaf that holds two matrices (k and v, gate and up).
"""

import dataclasses
import re
from collections.abc import Callable, Iterator

import numpy as np

PALIGEMMA = 'paligemma_with_expert.paligemma.model.'
EXPERT = 'paligemma_with_expert.gemma_expert.model.'
EMBED = PALIGEMMA + 'language_model.embed_tokens.weight'
LM_HEAD = 'paligemma_with_expert.paligemma.lm_head.weight'
UNUSED = ('paligemma_with_expert.gemma_expert.lm_head.weight',)  # kept by the originals, read by nobody


@dataclasses.dataclass(frozen=True)
class Form:
    """How a tensor becomes a slice of ours (`to_jax(tensor, slice shape)`) and back (`to_torch(slice)`)."""

    to_jax: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


SAME = Form(lambda x, shape: x, lambda x: x)
RESHAPED = Form(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1))  # biases of several heads
ADDED_AXIS = Form(lambda x, shape: x[None], lambda x: x[0])
TRANSPOSED = Form(lambda x, shape: x.T, lambda x: x.T)
CONVOLUTION = Form(lambda x, shape: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
# (heads * head_dim, width) -> (heads, width, head_dim), (width, heads, head_dim); (width, heads * head_dim) -> ...
HEADS_FIRST = Form(
    lambda x, shape: x.reshape(shape[0], shape[2], shape[1]).transpose(0, 2, 1),
    lambda x: x.transpose(0, 2, 1).reshape(-1, x.shape[1]),
)
HEADS_SECOND = Form(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(x.shape[0], -1).T)
HEADS_OUT = Form(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(-1, x.shape[-1]).T)


@dataclasses.dataclass(frozen=True)
class Rule:
    """`path` (ours) <- tensors `name` (theirs, openpi's spelling with `vision_model.`)."""

    path: str
    name: str
    form: Form
    stack: int | None = None

    def names(self, layers: int) -> Iterator[tuple[tuple[int, ...], str]]:
        """(index into our leaf, tensor name) of every tensor that this rule covers."""
        tail = () if self.stack is None else (self.stack,)
        if '{n}' not in self.name:
            yield tail, self.name
        else:
            yield from (((n, *tail), self.name.format(n=n)) for n in range(layers))


def _dense(path: str, name: str, form: Form = TRANSPOSED, bias: Form = SAME) -> list[Rule]:
    return [Rule(f'{path}/kernel', f'{name}.weight', form), Rule(f'{path}/bias', f'{name}.bias', bias)]


def _norm(path: str, name: str) -> list[Rule]:
    return [Rule(f'{path}/scale', f'{name}.weight', SAME), Rule(f'{path}/bias', f'{name}.bias', SAME)]


def _vision() -> list[Rule]:
    ours, theirs = 'PaliGemma/img', PALIGEMMA + 'vision_tower.vision_model'
    block, layer = f'{ours}/Transformer/encoderblock', theirs + '.encoder.layers.{n}'
    rules = _dense(f'{ours}/embedding', f'{theirs}.embeddings.patch_embedding', CONVOLUTION)
    rules += [Rule(f'{ours}/pos_embedding', f'{theirs}.embeddings.position_embedding.weight', ADDED_AXIS)]
    for n in (0, 1):
        rules += _norm(f'{block}/LayerNorm_{n}', f'{layer}.layer_norm{n + 1}')
    for n in (0, 1):
        rules += _dense(f'{block}/MlpBlock_0/Dense_{n}', f'{layer}.mlp.fc{n + 1}')
    heads = f'{block}/MultiHeadDotProductAttention_0'
    for mine, name in (('query', 'q_proj'), ('key', 'k_proj'), ('value', 'v_proj')):
        rules += _dense(f'{heads}/{mine}', f'{layer}.self_attn.{name}', HEADS_SECOND, RESHAPED)
    rules += _dense(f'{heads}/out', f'{layer}.self_attn.out_proj', HEADS_OUT)
    rules += _norm(f'{ours}/Transformer/encoder_norm', f'{theirs}.post_layernorm')
    return rules + _dense(f'{ours}/head', PALIGEMMA + 'multi_modal_projector.linear')


def _gemma(theirs: str, suffix: str, adaptive: bool) -> list[Rule]:
    llm, layer = 'PaliGemma/llm', theirs + 'layers.{n}.'
    attn, mlp = f'{llm}/layers/attn', f'{llm}/layers/mlp{suffix}'
    rules = [
        Rule(f'{attn}/q_einsum{suffix}/w', layer + 'self_attn.q_proj.weight', HEADS_FIRST),
        Rule(f'{attn}/kv_einsum{suffix}/w', layer + 'self_attn.k_proj.weight', HEADS_FIRST, 0),
        Rule(f'{attn}/kv_einsum{suffix}/w', layer + 'self_attn.v_proj.weight', HEADS_FIRST, 1),
        Rule(f'{attn}/attn_vec_einsum{suffix}/w', layer + 'self_attn.o_proj.weight', HEADS_OUT),
        Rule(f'{mlp}/gating_einsum', layer + 'mlp.gate_proj.weight', TRANSPOSED, 0),
        Rule(f'{mlp}/gating_einsum', layer + 'mlp.up_proj.weight', TRANSPOSED, 1),
        Rule(f'{mlp}/linear', layer + 'mlp.down_proj.weight', TRANSPOSED),
    ]
    norms = {
        f'{llm}/layers/pre_attention_norm{suffix}': layer + 'input_layernorm',
        f'{llm}/layers/pre_ffw_norm{suffix}': layer + 'post_attention_layernorm',
        f'{llm}/final_norm{suffix}': theirs + 'norm',
    }
    for path, name in norms.items():
        rules += (
            _dense(f'{path}/Dense_0', f'{name}.dense') if adaptive else [Rule(f'{path}/scale', f'{name}.weight', SAME)]
        )
    return rules


RULES = (
    *_vision(),
    *_gemma(PALIGEMMA + 'language_model.', '', adaptive=False),
    *_gemma(EXPERT, '_1', adaptive=True),
    Rule('PaliGemma/llm/embedder/input_embedding', EMBED, SAME),
    *(r for name in ('action_in_proj', 'action_out_proj', 'time_mlp_in', 'time_mlp_out') for r in _dense(name, name)),
)


def canonical(name: str) -> str:
    """A tensor name as openpi spells it: no leading `model.`, `vision_tower.vision_model.` in full."""
    if re.match(r'model\.(paligemma_with_expert|action_(in|out)_proj|time_mlp_(in|out))\.', name):
        name = name.removeprefix('model.')
    return re.sub(r'vision_tower\.(?!vision_model\.)', 'vision_tower.vision_model.', name)
