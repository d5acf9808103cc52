"""The paper's own container, .pt shards, read without running what a pickle says."""
