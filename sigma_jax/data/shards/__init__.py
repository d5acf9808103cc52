"""A data set becomes a folder of shards: planned, written, described, read at random."""
