# SPDX-License-Identifier: Apache-2.0
"""tests/support/session.py - a membankd and clients of it, for scripts.

    daemon = Daemon(folder, "--model", path)
    client = Client(daemon)
    client.result("create", name="a")
    daemon.stop()
"""
import atexit
import os
import subprocess
import time

import msgpack
import zmq

build = os.environ["MB_BINARY_DIR"]
TIMEOUT_MS = 60000


def check(ok, *what):
    if not ok:
        raise SystemExit(f"failed: {what}")


class Daemon:
    def __init__(self, folder, *options):
        self.folder = folder
        self.endpoint = f"ipc://{folder}/s"
        self.log = open(os.path.join(folder, "log"), "a", encoding="utf-8")
        self.process = subprocess.Popen(
            [os.path.join(build, "daemon", "membankd"), "--store",
             os.path.join(folder, "store"), "--listen", self.endpoint,
             *options], stdout=self.log, stderr=self.log)
        atexit.register(self.kill)  # a failed test leaves none behind
        until = time.monotonic() + 30
        while not os.path.exists(os.path.join(folder, "s")):
            if self.process.poll() is not None or time.monotonic() > until:
                raise SystemExit(open(self.log.name, encoding="utf-8").read())
            time.sleep(0.01)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self):
        self.process.terminate()
        check(self.process.wait(timeout=30) == 0, "exit",
              self.process.returncode)


class Client:
    def __init__(self, daemon):
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        self.socket.connect(daemon.endpoint)
        self.n = 0

    def send(self, op, timeout_ms=None, **args):
        self.n += 1
        message = {"v": 1, "id": self.n, "op": op, "args": args}
        if timeout_ms:
            message["timeout_ms"] = timeout_ms
        self.socket.send(msgpack.packb(message))
        return self.n

    def receive(self):
        return msgpack.unpackb(self.socket.recv())

    def ask(self, op, **args):
        """Parts and the last reply."""
        number = self.send(op, **args)
        parts = []
        while True:
            reply = self.receive()
            check(reply["id"] == number, "id", reply)
            if not reply.get("more"):
                return parts, reply
            parts.append(reply["result"])

    def result(self, op, **args):
        reply = self.ask(op, **args)[1]
        check(reply["ok"], op, args, reply)
        return reply["result"]

    def error(self, op, **args):
        reply = self.ask(op, **args)[1]
        check(not reply["ok"], op, args, reply)
        return reply["error"]

    def engine(self):
        return self.result("stats")["engine"]


def wait_for(what, condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < until, what, "took too long")
        time.sleep(0.01)
