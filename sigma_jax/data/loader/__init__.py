"""From shards to batches of sequences, in an order that a seed fixes."""
