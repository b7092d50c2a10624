#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""client/examples/example.py - two notes go in, an answer comes out.

The whole protocol in Python, without a client library: a REQ socket and one
msgpack map a message. Needs python3-zmq and python3-msgpack.

    example.py [ENDPOINT]
"""
import itertools
import os
import sys

import msgpack
import zmq

ids = itertools.count(1)


def default_endpoint():
    if os.environ.get("MEMBANK_ENDPOINT"):
        return os.environ["MEMBANK_ENDPOINT"]
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    if folder.startswith("/"):
        return f"ipc://{folder}/membank.sock"
    return f"ipc:///tmp/membank-{os.getuid()}.sock"


def call(socket, op, **args):
    """Send one request, wait for its reply, give back the result."""
    request = {"v": 1, "id": next(ids), "op": op, "args": args}
    socket.send(msgpack.packb(request))
    reply = msgpack.unpackb(socket.recv())
    assert reply["id"] == request["id"]
    if not reply["ok"]:
        error = reply["error"]
        raise RuntimeError(f"{op}: {error['code']}: {error['message']}")
    return reply["result"]


def main():
    socket = zmq.Context.instance().socket(zmq.REQ)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, 10000)
    socket.connect(sys.argv[1] if len(sys.argv) > 1 else default_endpoint())

    call(socket, "create", name="example", exist_ok=True)
    call(socket, "put", collection="example", documents=[
        {"id": "tea", "text": "Green tea tastes best at seventy degrees.",
         "meta": {"year": 2024, "topic": "kitchen"}},
        {"id": "bike", "text": "The bicycle's key lies behind the clock."},
    ])
    for question, where in [("Where is the key of the bicycle?", None),
                            ("How warm should tea be?", {"topic": "kitchen"})]:
        args = {"filter": where} if where else {}
        result = call(socket, "query", collection="example", text=question,
                      k=1, **args)
        print(question)
        for hit in result["hits"]:
            print("  " + hit["text"])


if __name__ == "__main__":
    try:
        main()
    except zmq.Again:
        sys.exit("example: no daemon answers")
    except RuntimeError as error:
        sys.exit(f"example: {error}")
