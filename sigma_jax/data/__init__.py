"""LeRobot episodes to windows to shards to batches. Numpy only: loader workers start no accelerator
client.
"""
