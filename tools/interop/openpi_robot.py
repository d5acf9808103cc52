"""A robot with openpi's own client, for `openpi_check.py`; runs in that client's environment.

    python openpi_robot.py URI OBSERVATIONS.npz ANSWERS.npz
    python openpi_robot.py URI OBSERVATIONS.npz --for_ever

Asks for every observation in order, then something wrong, then once more, and keeps the actions.
With --for_ever it asks until it is killed, or its connection is gone.
"""

import sys

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy


def observations(file):
    """Of a LIBERO robot, as openpi's examples send them."""
    stored = np.load(file)
    rows = zip(stored['image'], stored['wrist'], stored['state'])  # noqa: B905, any Python
    for image, wrist, state in rows:
        yield {
            'observation/image': image,
            'observation/wrist_image': wrist,
            'observation/state': state,
            'prompt': str(stored['prompt']),
        }


def main():
    """Entry point."""
    uri, seen, out = sys.argv[1:]
    client = WebsocketClientPolicy(uri)
    metadata = client.get_server_metadata()
    if out == '--for_ever':
        print('asking', flush=True)
        while True:
            for observation in observations(seen):
                client.infer(observation)
    actions, timing = [], {}
    for observation in observations(seen):
        answer = client.infer(observation)
        actions.append(answer['actions'])
        timing = answer['server_timing']
    assert timing['infer_ms'] > 0 and timing['prev_total_ms'] > 0
    try:
        client.infer({'observation/image': 'no picture'})
        raise SystemExit('expected an error, got an answer')
    except RuntimeError as error:
        told = str(error)
    again = client.infer(next(observations(seen)))['actions']
    broker = ActionChunkBroker(client, metadata['action_steps'])
    steps = [broker.infer(next(observations(seen)))['actions'] for _ in range(3)]
    np.savez(out, actions=actions, again=again, steps=steps, told=told)


if __name__ == '__main__':
    main()
