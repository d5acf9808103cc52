"""The table between pi0.5's PyTorch names (LeRobot, openpi) and openpi's JAX paths.

`axes` of a rule names the tensor's sizes, from which the model's are read (`pi05_sizes.py`):

    w m q k     width, mlp width, query rows (heads * head_dim), key rows, of a Gemma:
                language `l.`, action expert `e.`
    i.w i.m     width and mlp width of the image encoder
    patch, tokens, vocab, action; `3*e.w`: three of them
"""

from sigma_jax.backbones.names import (
    ADDED_AXIS,
    CONVOLUTION,
    HEADS_FIRST,
    HEADS_OUT,
    HEADS_SECOND,
    RESHAPED,
    SAME,
    TRANSPOSED,
    NameTable,
    Rule,
    TensorMap,
)

PALIGEMMA = 'paligemma_with_expert.paligemma.model.'
EXPERT = 'paligemma_with_expert.gemma_expert.model.'
EMBED = PALIGEMMA + 'language_model.embed_tokens.weight'
LM_HEAD = 'paligemma_with_expert.paligemma.lm_head.weight'
# kept by the originals, read by nobody
EXPERT_HEAD = 'paligemma_with_expert.gemma_expert.lm_head.weight'
TOPS = ('paligemma_with_expert', 'action_in_proj', 'action_out_proj', 'time_mlp_in', 'time_mlp_out')


def _dense(
    path: str, name: str, axes: str, tensor_map: TensorMap = TRANSPOSED, bias: TensorMap = SAME
) -> list[Rule]:
    rows = axes.split()[0]
    return [
        Rule(f'{path}/kernel', f'{name}.weight', tensor_map, axes),
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

TABLE = NameTable(
    rules=RULES,
    tops=TOPS,
    spellings=(
        # LeRobot's policy wraps the model
        (rf'^model\.(?=({"|".join(TOPS)})\.)', ''),
        # as transformers had it before, and openpi has it
        (r'vision_tower\.(?!vision_model\.)', 'vision_tower.vision_model.'),
    ),
    table=EMBED,
    tied=LM_HEAD,
    unused=EXPERT_HEAD,
    unused_width='time_mlp_in.bias',
    groups=DTYPE_GROUPS,
    half=('language model', 'action expert'),
)
