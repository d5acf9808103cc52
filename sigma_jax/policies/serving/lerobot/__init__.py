"""LeRobot's robot client drives a policy: its gRPC service without LeRobot, PyTorch and pickle.

wire          protobuf's bytes, observations in parts
unpickling    pickles read by a list of names
messages      what a client says, checked
answers       chunks as the client unpickles them
sessions      the observation that waits, the state of an episode
service       the calls
"""
