"""A policy beside a network: many robots, one device.

batching                      observations of several robots, computed together in a thread
limits                        who may ask, and how often: a key, TLS, a rate
metrics                       what a server counts, as a page for Prometheus
openpi                        openpi's websocket protocol
rrd                           an episode for the Rerun viewer
recording                     what came and went, as a LeRobot data set
lerobot                       LeRobot's gRPC protocol
running                       servers from start to end, programs compiled beside them
"""

from sigma_jax.errors import UserError

try:
    import prometheus_client  # noqa: F401
    import websockets  # noqa: F401
except ImportError as error:
    raise UserError(
        f"expected what serving needs, got: {error}; run `pip install 'sigma_jax[serve]'`"
    ) from error
