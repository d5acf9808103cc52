"""A policy beside a network: many robots, one device.

batching                      observations of several robots, computed together in a thread
"""
