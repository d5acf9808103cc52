"""openpi's websocket protocol: its clients drive a policy, unmodified.

wire          messages: msgpack, with arrays as maps of their bytes
keys          a client's names of cameras, state and instruction, and the policy's
session       one client: its robot's state, requests in, answers out
server        the websocket, its pages, limits, and the end
"""
