"""Recorded episodes to windows to shards to batches; numpy only, as loader workers start no GPU.

episode, sources              one demonstration; one door to every kind of data set
lerobot/, rlds/, pt/          the kinds: LeRobot v2.1 and v3.0, RLDS, the paper's .pt shards
video/                        frames by time from video files, and their clock
shards/                       planned, written, described, read at random
loader/                       from shards to batches of sequences, resumable anywhere
"""
