#!/usr/bin/env python3
"""Asks a router every row of probes.toml and prints `N passed, N failed`; non-zero when anything failed.

    probe.py HOST:PORT REALM [expect|strict|crossbar]

The last word names the column to compare with (default: expect). RawSocket with JSON; standard library only.
"""

import json
import pathlib
import socket
import sys
import tomllib

PATIENCE_S = 10
# How soon the end must follow an ABORT.
END_S = 5
# How long nothing must come before the router is asked whether the session goes on; the answer to that decides.
QUIET_S = 0.3
ROLES = {"publisher": {}, "subscriber": {}, "caller": {}, "callee": {}}
# The types of requests, which take their ids in sequence.
REQUESTS = (16, 32, 34, 48, 64, 66)


class Connection:
    def __init__(self, address):
        self.socket = socket.create_connection(address, PATIENCE_S)
        self.bytes = b""

    def fill(self, count, patience=PATIENCE_S):
        """True when `count` octets are there; False at the end of the connection; raises when they do not come."""
        self.socket.settimeout(patience)
        while len(self.bytes) < count:
            try:
                more = self.socket.recv(65_536)
            except ConnectionResetError:
                more = b""
            if not more:
                return False
            self.bytes += more
        return True

    def take(self, count):
        taken, self.bytes = self.bytes[:count], self.bytes[count:]
        return taken

    def send_text(self, text):
        data = text.encode()
        self.send(len(data).to_bytes(4, "big") + data)

    def send(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # The answer tells.

    def frame(self, patience=PATIENCE_S):
        """The next frame with its prefix; None at the end."""
        if not self.fill(4, patience):
            return None
        length = int.from_bytes(self.bytes[1:4], "big")
        return self.take(4 + length) if self.fill(4 + length) else None

    def handshake(self):
        self.send(bytes.fromhex("7ff10000"))
        assert self.fill(4) and self.take(4)[0] == 0x7F, "no handshake"

    def hello(self, realm):
        self.send_text(json.dumps([1, realm, {"roles": ROLES}]))
        welcome = json.loads(self.frame()[4:])
        assert welcome[0] == 2, f"no WELCOME but {welcome}"

    def ended(self):
        try:
            return not self.fill(len(self.bytes) + 1, END_S)
        except TimeoutError:
            return False


def octets(text):
    return bytes.fromhex(text.replace(" ", ""))


def shown(data):
    return data.hex(" ")


def is_alive(connection, request):
    """Whether the session still answers a request that every router answers; what else comes was no answer to the row."""
    connection.send_text(json.dumps([34, request, 4712]))
    while (frame := connection.frame()) is not None:
        message = json.loads(frame[4:])
        if message[:3] == [8, 34, request]:
            return True
        if message[0] in (3, 6):
            return False
    return False


def answer_without_transport(connection):
    if not connection.fill(1):
        return "end"
    connection.fill(4)
    data = connection.take(4)
    if data[1] & 0x0F:
        return "accepted"
    return f"octets:{shown(data)}" if connection.ended() else f"frame:{shown(data)}"


def requests(probe):
    """How many request ids a row uses."""
    count = 0
    for item in probe["send"]:
        try:
            message = json.loads(item)
        except ValueError:
            continue
        count += isinstance(message, list) and bool(message) and message[0] in REQUESTS
    return count


def answer(connection, state, request):
    try:
        frame = connection.frame(QUIET_S)
    except TimeoutError:
        if state == "session":
            return "ignored" if is_alive(connection, request) else "end"
        try:
            frame = connection.frame(3)
        except TimeoutError:
            return "ignored"
    if frame is None:
        return "end"
    if frame[0] & 0x07:
        return f"frame:{shown(frame)}"
    message = json.loads(frame[4:])
    match message[0]:
        case 3:
            return f"abort:{message[2]}" if connection.ended() else f"abort without end:{message[2]}"
        case 6:
            return f"goodbye:{message[2]}"
        case 8:
            text = f"error:{message[1]}:{message[4]}"
        case code:
            text = f"reply:{code}"
    return text if is_alive(connection, request) else f"{text}, then end"


def ask(address, realm, probe):
    connection = Connection(address)
    state = probe["state"]
    if state != "nothing":
        connection.handshake()
    if state == "session":
        connection.hello(realm)
    for item in probe["send"]:
        item = item.replace('"realm1"', json.dumps(realm))
        if item.startswith("hex:"):
            connection.send(octets(item[4:]))
        else:
            connection.send_text(item)
    try:
        if state == "nothing":
            return answer_without_transport(connection)
        return answer(connection, state, requests(probe) + 1)
    finally:
        connection.socket.close()


def main():
    host, port = sys.argv[1].rsplit(":", 1)
    realm = sys.argv[2]
    column = sys.argv[3] if len(sys.argv) > 3 else "expect"
    table = tomllib.loads(pathlib.Path(__file__).with_name("probes.toml").read_text())
    failed = 0
    for probe in table["probe"]:
        wanted = probe.get(column, probe["expect"])
        try:
            got = ask((host, int(port)), realm, probe)
        except (OSError, AssertionError, ValueError, TypeError) as error:
            got = f"{type(error).__name__}: {error}"
        if got != wanted:
            failed += 1
            print(f"failed {probe['name']}: expected {wanted}, got {got} ({probe['section']})")
    print(f"{len(table['probe']) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
