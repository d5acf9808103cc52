"""pi0.5 as a `BackboneSpec`."""

import re

from sigma_jax.backbones import pi05, pi05_names, pi05_quantities, pi05_sizes
from sigma_jax.backbones.base import BackboneSpec
from sigma_jax.backbones.pi05_prompt import prompt_parts

PI05 = BackboneSpec(
    name='pi05',
    config=pi05.Pi05Config,
    parts=pi05.PARTS,
    init_params=pi05.init_params,
    bind=pi05.BoundPi05,
    prompt=prompt_parts,
    layouts=pi05.LAYOUTS,
    stored=pi05.STORED,
    acting=pi05.ACTION_EXPERT,
    encoding=re.compile(r'PaliGemma/llm/layers/(?!.*_1/).*'),
    table='PaliGemma/llm/embedder/input_embedding',
    flows=True,
    mark=re.compile(r'(.*[./])?time_mlp_in[./].*'),
    names=pi05_names.TABLE,
    hints=pi05_sizes.hints,
    from_tensors=pi05_sizes.infer,
    from_leaves=pi05_sizes.from_jax_shapes,
    quantities=pi05_quantities.quantities,
    public_sizes=pi05_quantities.public_sizes,
)
