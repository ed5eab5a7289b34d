"""The framing on its own: anything may stand in a message, and anything else is refused."""

import json
import os
import struct
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelmill.runtimes.wire import Channel, ProtocolError

PLAIN = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)),
)
ARRAYS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])),
    hnp.arrays(PLAIN, hnp.array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=4)),
    max_size=4,
)


def send_and_receive(head, arrays):
    read, write = os.pipe()
    try:
        channel = Channel(read, write)
        writer = threading.Thread(target=Channel(read, write).send, args=(head, arrays))
        writer.start()
        found = channel.receive(time.monotonic() + 20)
        writer.join()
        return found
    finally:
        os.close(read)
        os.close(write)


def receive_bytes(data):
    read, write = os.pipe()
    try:
        os.write(write, data)
        os.close(write)
        return Channel(read, read).receive(time.monotonic() + 5)
    finally:
        os.close(read)


def message(head, payload=b"", total=None):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    size = len(payload) if total is None else total
    return struct.pack("<4sIQ", b"MMW1", len(text), size) + text + payload


@given(arrays=ARRAYS, note=st.text())
def test_what_is_sent_is_received(arrays, note):
    head, found = send_and_receive({"note": note}, arrays)
    assert head == {"note": note} and list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_more_than_a_pipe_holds():
    big = np.random.default_rng(0).integers(0, 256, 5_000_001).astype(np.uint8)
    assert send_and_receive({}, {"x": big})[1]["x"].tobytes() == big.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        struct.pack("<4sIQ", b"MMW1", 2**31, 0),
        message(b"{not json"),
        message([1, 2]),
        message({"no": "arrays"}),
        message({"arrays": [["x", "|O", [1]]]}, bytes(8)),
        message({"arrays": [["x", "<U1", [1]]]}, bytes(4)),
        message({"arrays": [["x", "<f4", [-1]]]}, bytes(4)),
        message({"arrays": [["x", "<f4", [1.5]]]}, bytes(4)),
        message({"arrays": [["x", "<f4", [2]]]}, bytes(4)),
        message({"arrays": [["x", "<f4"]]}, bytes(4)),
    ],
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ProtocolError):
        receive_bytes(data)


@pytest.mark.parametrize("cut", [0, 5, 20, 60])
def test_a_message_that_ends_early(cut):
    whole = message({"arrays": [["x", "<f8", [100]]]}, bytes(800))
    with pytest.raises(EOFError):
        receive_bytes(whole[:cut])


def test_nothing_arrives_in_time():
    read, write = os.pipe()
    with pytest.raises(TimeoutError):
        Channel(read, write).receive(time.monotonic() + 0.05)
    with pytest.raises(TimeoutError):  # and nobody reads
        Channel(read, write).send({}, {"x": np.zeros(10**7)}, time.monotonic() + 0.05)
    os.close(read)
    os.close(write)


def test_the_reader_is_gone():
    read, write = os.pipe()
    channel = Channel(read, write)
    os.close(read)
    with pytest.raises(BrokenPipeError):
        channel.send({}, {"x": np.zeros(10)})
    os.close(write)
