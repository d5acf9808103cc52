"""Messages are protobuf's, to the byte; what is none is reported."""

import itertools

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from sigma_jax.errors import UserError
from sigma_jax.policies.serving.lerobot import wire
from tests.policies.serving.lerobot.client import recorded


def parts_of(number: int) -> list[bytes]:
    """The messages of a recorded call of SendObservations."""
    names = (f'SendObservations/{number}/{part}' for part in itertools.count())
    return [recorded()[name] for name in itertools.takewhile(recorded().__contains__, names)]


def put_together(messages, limit=1 << 30):
    parts = wire.Parts(limit)
    return [parts.add(message) for message in messages]


@pytest.fixture(scope='module')
def protobuf():
    """The messages by Google's own package."""
    file = descriptor_pb2.FileDescriptorProto(name='t.proto', package='transport', syntax='proto3')
    kind = descriptor_pb2.FieldDescriptorProto
    for name, fields in {
        'Observation': {'transfer_state': kind.TYPE_INT32, 'data': kind.TYPE_BYTES},
        'Actions': {'data': kind.TYPE_BYTES},
    }.items():
        message = file.message_type.add(name=name)
        for n, (field, of) in enumerate(fields.items()):
            message.field.add(name=field, number=n + 1, type=of, label=kind.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return {
        name: message_factory.GetMessageClass(find(f'transport.{name}'))
        for name in ('Observation', 'Actions')
    }


@pytest.mark.parametrize('number', [0, 1])
def test_parts_are_those_that_lerobot_sends(number):
    sent = parts_of(number)
    *before, whole = put_together(sent)
    assert before == [None] * (len(sent) - 1) and whole[:2] == b'\x80\x04'
    assert list(wire.write_parts(whole)) == sent
    assert (len(sent), len(whole) > 7_000_000) == ((1, False), (4, True))[number]


@pytest.mark.parametrize('size', [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
def test_messages_are_protobuf_s(protobuf, size):
    data = np.random.default_rng(size).bytes(size)
    theirs = protobuf['Actions'](data=data).SerializeToString()
    assert wire.write_data(data) == theirs and wire.read_data(theirs) == data
    if size:
        ours = list(wire.write_parts(data))
        read = [protobuf['Observation'].FromString(message) for message in ours]
        assert b''.join(one.data for one in read) == data
        assert [one.SerializeToString() for one in read] == ours
        assert put_together(ours)[-1] == data


def test_fields_that_are_not_known_are_passed_over():
    """As protobuf does: a later release may have one more."""
    later = b'\x18\x05' + b'\x21' + bytes(8) + b'\x2d' + bytes(4) + b'\x32\x02ab'
    assert wire.read_data(later + wire.write_data(b'abc') + later) == b'abc'
    assert put_together([b'\x08\x03\x12\x01x' + later]) == [b'x']
    assert wire.read_data(wire.write_data(b'first') + wire.write_data(b'last')) == b'last'


@pytest.mark.parametrize(
    'message',
    [
        b'\x0a',  # no length
        b'\x0a\x05abc',  # shorter than it says
        b'\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f',  # 2**63 bytes
        b'\x80' * 11,  # a number without end
        b'\x08\x01',  # a number where bytes are
        b'\x0b\x0c',  # a group
        b'\x02\x00',  # field 0
        b'\x09abc',  # half of a fixed number
    ],
)
def test_what_is_no_message_is_reported(message):
    with pytest.raises(UserError, match=r'expected a message of transport.AsyncInference, got'):
        wire.read_data(message)


def test_any_bytes_are_a_message_or_an_error():
    random = np.random.default_rng(0)
    for _ in range(2000):
        message = random.bytes(random.integers(1, 20))
        try:
            assert isinstance(wire.read_data(message), bytes)
        except UserError as error:
            assert 'expected a message' in str(error)


@pytest.mark.parametrize(
    'places', [[2], [0], [4], [1, 1], [1, 0], [1, 2, 1], [1, 2, 9]], ids=lambda x: str(x)
)
def test_parts_out_of_order_are_reported(places):
    messages = [bytes([8, place, 18, 1, 65]) for place in places]
    with pytest.raises(UserError, match=f'got one of transfer state {places[-1]}; send it anew'):
        put_together(messages)


def test_an_observation_has_a_limit():
    """It is met by the part that passes it, and not by what a part says of itself."""
    data = bytes(1000)
    assert put_together(wire.write_parts(data, 300), limit=1000)[-1] == data
    parts = wire.Parts(limit=999)
    *fit, last = wire.write_parts(data, 300)
    assert [parts.add(message) for message in fit] == [None] * 3
    with pytest.raises(UserError, match='expected an observation of at most 999 bytes, got 1,000'):
        parts.add(last)
