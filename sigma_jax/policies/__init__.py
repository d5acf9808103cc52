"""Policies that act: how pi0.5 samples actions, and its own actions kept beside the shards.

protocol        what a policy takes and gives
sampled_policy  a base, or a fine-tuned policy, as one: `infer`
load            a folder of weights opened as one
sampling        the compiled sampler
base_actions    the base's actions in every window of some shards
"""
