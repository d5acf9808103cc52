"""Policies that act: how pi0.5 samples actions, and its own actions kept beside the shards."""
