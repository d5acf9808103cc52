"""LoRA on the tiny pi0.5 of this repository by flow matching: what a user would do instead of Sigma
(docs/design.md, "Evaluation protocol").
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    """The demo's data, Sigma's LoRA on both experts; experiments/telepathy.py sets the steps for
    equal compute.
    """
    c = defaults.get_config()
    c.objective = 'flow_matching'
    c.trainable = ('lora',)
    c.base = 'demo_run/base'
    c.shards = 'demo_run/shards'
    c.steps = 1000
    c.batch_size = 16  # windows a step, as many as Sigma's 4 x 4
    c.sequence_length = 1  # flow matching has no memory to carry
    # of language model and action expert
    c.lora.patterns = (r'.*/attn/(q|kv|attn_vec)_einsum(_1)?/w',)
    c.optimizer.lora_rate = 3e-3  # peak; the best of 3e-4, 1e-3 and 3e-3 on calibration episodes
    return c
