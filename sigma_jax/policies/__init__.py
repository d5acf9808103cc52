"""Policies that act: how pi0.5 samples actions, what Sigma makes of them, and the base's own kept
beside the shards.

protocol        what a policy takes and gives, and what it keeps of an episode
acting          observations read, states kept: a policy of whatever computes chunks
sampled_policy  a base, or a fine-tuned policy, computes them
sigma           a Sigma around its base does
load            a folder of weights opened
robot           what acting has to know of shards
sampling        the compiled sampler
base_actions    the base's actions in every window of some shards
"""
