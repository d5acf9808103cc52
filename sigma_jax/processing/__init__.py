"""From a robot's observation to a policy's inputs, and from its outputs to raw actions; numpy
alone.
"""
