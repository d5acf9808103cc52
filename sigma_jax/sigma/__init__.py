"""The three workspaces of the paper: vision (3.1), language intent (3.2), action trajectory
(3.3).
"""
