#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/curve.py - who gets in over TCP.

A real daemon with keys: a client on the allow list works, by any library; one
that is not, one that knows another server key and one without keys get no
byte of a reply. Without keys no endpoint that other machines reach is served,
and files of keys that are wrong keep the daemon from starting."""
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import msgpack
import zmq
from zmq.utils.monitor import recv_monitor_message

build = os.environ["MB_BINARY_DIR"]
membankd = os.path.join(build, "daemon", "membankd")
query = os.path.join(build, "tools", "membank-query")
WAIT_S = 30
FAILED = (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
          | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
          | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED)

if not zmq.has("curve"):
    print("libzmq has no CURVE")
    sys.exit(77)


class Keys:
    """A pair, and the server key that its owner believes in."""

    def __init__(self, server=None):
        public, secret = zmq.curve_keypair()
        self.public, self.secret = public.decode(), secret.decode()
        self.server = server.public if server else None


def write(folder, name, text):
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8", newline="") as f:
        f.write(text)
    os.chmod(path, 0o600)
    return path


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


# ---- the daemon ----

class Endpoint(str):
    """An address, and the process behind it."""


@contextlib.contextmanager
def daemon(folder, *options):
    """Yields its TCP endpoint: the system chooses the port, the log tells."""
    path = os.path.join(folder, "log")
    with open(path, "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [membankd, "--store", os.path.join(folder, "store"), "--listen",
             "tcp://127.0.0.1:*", "--listen", f"ipc://{folder}/s", *options],
            stdout=log, stderr=log)
    until = time.monotonic() + WAIT_S
    found = None
    try:
        while not found or "ipc://" not in read(path):
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"membankd {options}\n{read(path)}")
            found = re.search(r"endpoint=\S*127\.0\.0\.1\]?:(\d+)", read(path))
            time.sleep(0.01)
        endpoint = Endpoint(f"tcp://127.0.0.1:{found.group(1)}")
        endpoint.process = process
        yield endpoint
    except SystemExit:
        print(read(path))
        raise
    finally:
        process.terminate()
        code = process.wait(timeout=WAIT_S)
    if code != 0:
        sys.exit(f"membankd ended with {code}\n{read(path)}")


def refused(folder, want, *options):
    """It must not start, and say why."""
    done = subprocess.run(
        [membankd, "--store", os.path.join(folder, "never"), *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=WAIT_S)
    if done.returncode == 0 or want not in done.stdout:
        sys.exit(f"{options}: wanted {want!r}, ended with {done.returncode}\n"
                 f"{done.stdout}")


# ---- clients ----

class Client:
    def __init__(self, endpoint, keys=None, plain=False):
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        if keys:
            self.socket.curve_publickey = keys.public.encode()
            self.socket.curve_secretkey = keys.secret.encode()
            self.socket.curve_serverkey = keys.server.encode()
        if plain:
            self.socket.plain_username = b"user"
            self.socket.plain_password = b"word"
        self.monitor = self.socket.get_monitor_socket(
            FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.socket.connect(endpoint)
        self.n = 0

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.socket.disable_monitor()
        self.socket.close()

    def send(self, op, **args):
        self.n += 1
        self.socket.send(msgpack.packb(
            {"v": 1, "id": self.n, "op": op, "args": args}))

    def ask(self, op, **args):
        self.send(op, **args)
        if not self.socket.poll(WAIT_S * 1000):
            sys.exit(f"{op}: no reply")
        reply = msgpack.unpackb(self.socket.recv())
        if not reply["ok"] or reply["id"] != self.n:
            sys.exit(f"{op}: {reply}")
        return reply["result"]

    def stays_out(self, what):
        """Send, see two events of a connection that fails, and no reply."""
        self.send("ping")
        n = 0
        until = time.monotonic() + WAIT_S
        while n < 2:
            if not self.monitor.poll(1000) and time.monotonic() > until:
                sys.exit(f"{what}: was not turned away")
            while self.monitor.poll(0):
                event = recv_monitor_message(self.monitor)["event"]
                if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    sys.exit(f"{what}: got in")
                n += 1
        if self.socket.poll(0):
            sys.exit(f"{what}: got {self.socket.recv_multipart()}")
        print(f"{what}: turned away")


def session(client):
    client.ask("create", name="c", exist_ok=True)
    client.ask("put", collection="c", documents=[
        {"id": "a", "text": "The bicycle's key lies behind the clock."}])
    text = client.ask("get", collection="c", id="a")["text"]
    hits = client.ask("query", collection="c", text="bicycle")["hits"]
    if "clock" not in text or hits[0]["id"] != "a":
        sys.exit(f"session: {text}, {hits}")


def tool(folder, endpoint, keys):
    """membank-query, which uses the client library: exit code and output."""
    options = []
    if keys:
        options = ["--keys", write(folder, "client.keys",
                                   "# of a client\n"
                                   f"server_key = {keys.server}\n"
                                   f"public_key = {keys.public}\n"
                                   f"secret_key = {keys.secret}\n")]
    done = subprocess.run(
        [query, "--connect", endpoint, "--timeout", "5", "--collection", "c",
         *options, "bicycle"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=WAIT_S)
    return done.returncode, done.stdout


# ---- what is tested ----

def check_allow_list(folder):
    server = Keys()
    allowed, unknown = Keys(server), Keys(server)
    misled = Keys(Keys())
    options = [
        "--curve-secret-key-file", write(folder, "secret", server.secret),
        "--curve-allow-file", write(
            folder, "allow", "# who may come in " + "x" * 300 + "\r\n\r\n"
            f"{Keys().public}\r\n{misled.public} of a friend\n"
            f"{allowed.public}")]
    with daemon(folder, *options) as endpoint:
        with Client(endpoint, allowed) as inside:
            session(inside)
            with Client(endpoint, unknown) as c:
                c.stays_out("unknown key")
            with Client(endpoint, misled) as c:
                c.stays_out("other server key")
            with Client(endpoint) as c:
                c.stays_out("no key")
            with Client(endpoint, plain=True) as c:
                c.stays_out("password")
            inside.ask("ping")
        # A socket in the file system is guarded by its mode.
        with Client(f"ipc://{folder}/s") as c:
            c.ask("ping")
        code, output = tool(folder, endpoint, allowed)
        if code != 0 or "clock" not in output:
            sys.exit(f"membank-query with keys: {code}\n{output}")
        code, output = tool(folder, endpoint, unknown)
        if code == 0 or "clock" in output or "key" not in output:
            sys.exit(f"membank-query, unknown key: {code}\n{output}")
        print(f"membank-query, unknown key: {output.strip()}")
        code, output = tool(folder, endpoint, None)
        if code == 0 or "clock" in output or "handshake" not in output:
            sys.exit(f"membank-query without keys: {code}\n{output}")
        print(f"membank-query without keys: {output.strip()}")
        code, output = tool(folder, endpoint, misled)
        if code == 0 or "clock" in output:
            sys.exit(f"membank-query, other server key: {code}\n{output}")
    log = read(os.path.join(folder, "log"))
    if f"server.denied key={unknown.public}" not in log.replace('"', ""):
        sys.exit(f"the log does not name the key that was denied\n{log}")
    if server.secret in log:
        sys.exit("the log has the secret key")


def reload(folder, endpoint):
    """SIGHUP; what the log says of it."""
    log = os.path.join(folder, "log")
    before = read(log).count("ev=daemon.reload")
    endpoint.process.send_signal(signal.SIGHUP)
    until = time.monotonic() + WAIT_S
    while read(log).count("ev=daemon.reload") == before:
        if time.monotonic() > until:
            sys.exit("SIGHUP: no answer in the log")
        time.sleep(0.01)
    return [line for line in read(log).splitlines()
            if "ev=daemon.reload" in line][-1]


def check_reload(folder):
    """The list is read again while the daemon runs; a bad one changes
    nothing, and who is in stays in."""
    server = Keys()
    old, new = Keys(server), Keys(server)
    options = ["--curve-secret-key-file", write(folder, "secret", server.secret),
               "--curve-allow-file", write(folder, "list", old.public)]
    with daemon(folder, *options) as endpoint:
        with Client(endpoint, old) as inside:
            inside.ask("ping")
            with Client(endpoint, new) as c:
                c.stays_out("key not on the list yet")
            write(folder, "list", f"{new.public}\nnonsense\n")
            line = reload(folder, endpoint)
            if "level=err" not in line or "line 2" not in line:
                sys.exit(f"a bad list: {line}")
            with Client(endpoint, new) as c:
                c.stays_out("key of a list that is refused")
            with Client(endpoint, old) as c:
                c.ask("ping")
            write(folder, "list", new.public)
            line = reload(folder, endpoint)
            if "level=info" not in line:
                sys.exit(f"a good list: {line}")
            with Client(endpoint, new) as c:
                session(c)
            with Client(endpoint, old) as c:
                c.stays_out("key no longer on the list")
            inside.ask("ping")


def check_no_list(folder):
    """Whoever knows the server's public key may come in, nobody else."""
    server = Keys()
    with daemon(folder, "--curve-secret-key-file",
                write(folder, "secret", server.secret + "\n")) as endpoint:
        with Client(endpoint, Keys(server)) as c:
            session(c)
        with Client(endpoint, Keys(Keys())) as c:
            c.stays_out("no list, other server key")
        with Client(endpoint) as c:
            c.stays_out("no list, no key")


def check_open_endpoints(folder):
    for endpoint in ("tcp://0.0.0.0:*", "tcp://*:*", "tcp://[::]:*",
                     "tcp://lo:*", "tcp://127.0.0.1.example.org:5555"):
        refused(folder, "--insecure", "--listen", endpoint)
    refused(folder, "--insecure", "--listen", "tcp://127.0.0.1:*", "--listen",
            "tcp://0.0.0.0:*")
    if os.path.exists(os.path.join(folder, "never")):
        sys.exit("a daemon that may not start has made a store")


def check_bad_files(folder):
    good = Keys()
    tcp = ["--listen", "tcp://127.0.0.1:*"]
    secret = write(folder, "secret", good.secret)

    for what, text in (("empty", ""), ("comment", "# nothing\n"),
                       ("short", good.secret[:-1]),
                       ("long", good.secret + "a"),
                       ("letters", good.secret[:-1] + "~"),
                       ("two", f"{good.secret}\n{good.secret}\n")):
        path = write(folder, what, text)
        refused(folder, path, *tcp, "--curve-secret-key-file", path)
        if what != "two":
            refused(folder, path, *tcp, "--curve-secret-key-file", secret,
                    "--curve-allow-file", path)
    # One bad line spoils the list: better than to let in fewer unnoticed.
    path = write(folder, "mixed", f"{good.public}\nkey\n")
    refused(folder, path, *tcp, "--curve-secret-key-file", secret,
            "--curve-allow-file", path)
    path = write(folder, "many", f"{good.public}\n" * 4097)
    refused(folder, path, *tcp, "--curve-secret-key-file", secret,
            "--curve-allow-file", path)
    path = os.path.join(folder, "absent")
    refused(folder, path, *tcp, "--curve-secret-key-file", path)
    refused(folder, "curve_secret_key_file", *tcp, "--curve-allow-file",
            secret)


for check in (check_allow_list, check_reload, check_no_list,
              check_open_endpoints, check_bad_files):
    with tempfile.TemporaryDirectory(prefix="mbtest") as new:
        check(new)
    print(f"{check.__name__}: ok")
