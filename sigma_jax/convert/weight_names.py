"""One table between pi0.5's PyTorch names (LeRobot, openpi) and openpi's JAX paths, readable both
ways.

A rule says which tensor fills which slice of a leaf, and in which form. `{n}` in a name runs over
the layers stacked on axis 0; `stack` is the index within a leaf that holds two matrices (k and v,
gate and up). `axes` names the tensor's sizes, from which the model's are read (`sizes.py`):

    v w m q k   width, mlp width, query rows (heads * head_dim), key rows, of a Gemma: language `l.`, action expert `e.`
    i.w i.m     width and mlp width of the image encoder; `patch`, `tokens`, `vocab`, `action`; `3*e.w`: three of them
"""

import dataclasses
import re
from collections.abc import Callable, Iterator

import numpy as np

PALIGEMMA = 'paligemma_with_expert.paligemma.model.'
EXPERT = 'paligemma_with_expert.gemma_expert.model.'
EMBED = PALIGEMMA + 'language_model.embed_tokens.weight'
LM_HEAD = 'paligemma_with_expert.paligemma.lm_head.weight'
# kept by the originals, read by nobody
EXPERT_HEAD = 'paligemma_with_expert.gemma_expert.lm_head.weight'
TOPS = ('paligemma_with_expert', 'action_in_proj', 'action_out_proj', 'time_mlp_in', 'time_mlp_out')
BLOCK = 64  # rows transposed at once: what a cache holds; 4 to 6 times as fast as numpy's own order


def transpose(x: np.ndarray) -> np.ndarray:
    """A transposed copy of a matrix."""
    # numpy copies extension types such as bfloat16 one by one
    bits = x.view(f'u{x.dtype.itemsize}')
    out = np.empty(x.shape[::-1], bits.dtype)
    for n in range(0, len(x), BLOCK):
        out[:, n : n + BLOCK] = bits[n : n + BLOCK].T
    return out.view(x.dtype)


@dataclasses.dataclass(frozen=True)
class Form:
    """How a tensor becomes a slice of ours (`to_jax(tensor, slice shape)`) and back
    (`to_torch(slice)`).
    """

    to_jax: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


SAME = Form(lambda x, shape: x, lambda x: x)
# biases of several heads
RESHAPED = Form(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1))
ADDED_AXIS = Form(lambda x, shape: x[None], lambda x: x[0])
TRANSPOSED = Form(lambda x, shape: transpose(x), transpose)
CONVOLUTION = Form(lambda x, shape: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
# (heads * head_dim, width) -> (heads, width, head_dim), (width, heads, head_dim); (width, heads *
# head_dim) -> ...
HEADS_FIRST = Form(
    lambda x, shape: x.reshape(shape[0], shape[2], shape[1]).transpose(0, 2, 1),
    lambda x: x.transpose(0, 2, 1).reshape(-1, x.shape[1]),
)
HEADS_SECOND = Form(
    lambda x, shape: transpose(x).reshape(shape), lambda x: transpose(x.reshape(x.shape[0], -1))
)
HEADS_OUT = Form(
    lambda x, shape: transpose(x).reshape(shape), lambda x: transpose(x.reshape(-1, x.shape[-1]))
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """`path` (ours) <- tensors `name` (theirs, openpi's spelling with `vision_model.`)."""

    path: str
    name: str
    form: Form
    axes: str
    stack: int | None = None

    def names(self, layers: int) -> Iterator[tuple[tuple[int, ...], str]]:
        """(index into our leaf, tensor name) of every tensor that this rule covers."""
        tail = () if self.stack is None else (self.stack,)
        if '{n}' not in self.name:
            yield tail, self.name
        else:
            yield from (((n, *tail), self.name.format(n=n)) for n in range(layers))


def _dense(
    path: str, name: str, axes: str, form: Form = TRANSPOSED, bias: Form = SAME
) -> list[Rule]:
    rows = axes.split()[0]
    return [
        Rule(f'{path}/kernel', f'{name}.weight', form, axes),
        Rule(f'{path}/bias', f'{name}.bias', bias, rows),
    ]


def _norm(path: str, name: str) -> list[Rule]:
    parts = (('scale', 'weight'), ('bias', 'bias'))
    return [Rule(f'{path}/{ours}', f'{name}.{theirs}', SAME, 'i.w') for ours, theirs in parts]


def _vision() -> list[Rule]:
    ours, theirs = 'PaliGemma/img', PALIGEMMA + 'vision_tower.vision_model'
    block, layer = f'{ours}/Transformer/encoderblock', theirs + '.encoder.layers.{n}'
    rules = _dense(
        f'{ours}/embedding',
        f'{theirs}.embeddings.patch_embedding',
        'i.w 3 patch patch',
        CONVOLUTION,
    )
    position = f'{theirs}.embeddings.position_embedding.weight'
    rules += [Rule(f'{ours}/pos_embedding', position, ADDED_AXIS, 'tokens i.w')]
    for n in (0, 1):
        rules += _norm(f'{block}/LayerNorm_{n}', f'{layer}.layer_norm{n + 1}')
    for n, axes in enumerate(('i.m i.w', 'i.w i.m')):
        rules += _dense(f'{block}/MlpBlock_0/Dense_{n}', f'{layer}.mlp.fc{n + 1}', axes)
    heads = f'{block}/MultiHeadDotProductAttention_0'
    for mine, name in (('query', 'q_proj'), ('key', 'k_proj'), ('value', 'v_proj')):
        rules += _dense(
            f'{heads}/{mine}', f'{layer}.self_attn.{name}', 'i.w i.w', HEADS_SECOND, RESHAPED
        )
    rules += _dense(f'{heads}/out', f'{layer}.self_attn.out_proj', 'i.w i.w', HEADS_OUT)
    rules += _norm(f'{ours}/Transformer/encoder_norm', f'{theirs}.post_layernorm')
    return rules + _dense(f'{ours}/head', PALIGEMMA + 'multi_modal_projector.linear', 'l.w i.w')


def _gemma(theirs: str, suffix: str, x: str) -> list[Rule]:
    llm, layer = 'PaliGemma/llm', theirs + 'layers.{n}.'
    attn, mlp = f'{llm}/layers/attn', f'{llm}/layers/mlp{suffix}'
    return [
        Rule(
            f'{attn}/q_einsum{suffix}/w',
            layer + 'self_attn.q_proj.weight',
            HEADS_FIRST,
            f'{x}.q {x}.w',
        ),
        Rule(
            f'{attn}/kv_einsum{suffix}/w',
            layer + 'self_attn.k_proj.weight',
            HEADS_FIRST,
            f'{x}.k {x}.w',
            0,
        ),
        Rule(
            f'{attn}/kv_einsum{suffix}/w',
            layer + 'self_attn.v_proj.weight',
            HEADS_FIRST,
            f'{x}.k {x}.w',
            1,
        ),
        Rule(
            f'{attn}/attn_vec_einsum{suffix}/w',
            layer + 'self_attn.o_proj.weight',
            HEADS_OUT,
            f'{x}.w {x}.q',
        ),
        Rule(f'{mlp}/gating_einsum', layer + 'mlp.gate_proj.weight', TRANSPOSED, f'{x}.m {x}.w', 0),
        Rule(f'{mlp}/gating_einsum', layer + 'mlp.up_proj.weight', TRANSPOSED, f'{x}.m {x}.w', 1),
        Rule(f'{mlp}/linear', layer + 'mlp.down_proj.weight', TRANSPOSED, f'{x}.w {x}.m'),
    ]


def _gemma_norms(theirs: str, suffix: str, adaptive: bool) -> list[Rule]:
    llm, layer = 'PaliGemma/llm', theirs + 'layers.{n}.'
    norms = {
        f'{llm}/layers/pre_attention_norm{suffix}': layer + 'input_layernorm',
        f'{llm}/layers/pre_ffw_norm{suffix}': layer + 'post_attention_layernorm',
        f'{llm}/final_norm{suffix}': theirs + 'norm',
    }
    if not adaptive:
        return [
            Rule(f'{path}/scale', f'{name}.weight', SAME, 'l.w') for path, name in norms.items()
        ]
    pairs = (
        _dense(f'{path}/Dense_0', f'{name}.dense', '3*e.w e.w') for path, name in norms.items()
    )
    return [rule for pair in pairs for rule in pair]


RULES = (
    *_vision(),
    *_gemma(PALIGEMMA + 'language_model.', '', 'l'),
    *_gemma_norms(PALIGEMMA + 'language_model.', '', adaptive=False),
    *_gemma(EXPERT, '_1', 'e'),
    *_gemma_norms(EXPERT, '_1', adaptive=True),
    Rule('PaliGemma/llm/embedder/input_embedding', EMBED, SAME, 'vocab l.w'),
    *_dense('action_in_proj', 'action_in_proj', 'e.w action'),
    *_dense('action_out_proj', 'action_out_proj', 'action e.w'),
    *_dense('time_mlp_in', 'time_mlp_in', 'e.w e.w'),
    *_dense('time_mlp_out', 'time_mlp_out', 'e.w e.w'),
)
# Leaves that share one dtype, whatever a checkpoint's: the originals keep norms, image encoder and
# heads in float32.
DTYPE_GROUPS = {
    'image embeddings': 'PaliGemma/img/(embedding/.*|pos_embedding)',
    'image encoder': 'PaliGemma/img/Transformer/.*',
    'image projector': 'PaliGemma/img/head/.*',
    'language norms': 'PaliGemma/llm/.*norm/.*',
    'action expert norms': 'PaliGemma/llm/.*norm_1/.*',
    'action expert': 'PaliGemma/llm/layers/.*_1/.*',
    'language model': 'PaliGemma/llm/.*',
    'action and time projections': '(action|time)_.*',
}


def dtype_group(path: str) -> str:
    """The group of leaves that a leaf shares its dtype with."""
    return next(name for name, pattern in DTYPE_GROUPS.items() if re.fullmatch(pattern, path))


def canonical(name: str) -> str:
    """A tensor name as openpi spells it: no leading `model.`, `vision_tower.vision_model.` in
    full.
    """
    if re.match(rf'model\.({"|".join(TOPS)})\.', name):
        name = name.removeprefix('model.')
    return re.sub(r'vision_tower\.(?!vision_model\.)', 'vision_tower.vision_model.', name)
