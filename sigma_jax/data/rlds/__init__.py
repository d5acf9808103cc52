"""RLDS data sets (TFDS folders with an episode a record) without TensorFlow."""
