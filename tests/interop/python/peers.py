"""Autobahn|Python sessions for the interoperability suites."""

import asyncio
import base64
import json
import pathlib

import txaio

txaio.use_asyncio()

from autobahn.asyncio.wamp import ApplicationRunner, ApplicationSession  # noqa: E402
from autobahn.wamp.message import Welcome  # noqa: E402
from autobahn.wamp.serializer import (  # noqa: E402
    CBORSerializer,
    JsonSerializer,
    MsgPackSerializer,
)

FORMATS = {"json": JsonSerializer, "msgpack": MsgPackSerializer, "cbor": CBORSerializer}
SERIALIZERS = tuple(FORMATS)


def serializer_of(name):
    """The serializer of `json` or, in batches, `json.batched`."""
    form, _, batched = name.partition(".")
    return FORMATS[form](batched=True) if batched else FORMATS[form]()


REALM = "realm1"
PATIENCE_S = 20


class Left(Exception):
    """The session ended before it joined, or was not asked to end."""

    def __init__(self, reason, message):
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class Peer(ApplicationSession):
    """A session that can be awaited: `joined` and `left` are futures."""

    def __init__(self, config):
        super().__init__(config)
        loop = asyncio.get_running_loop()
        self.joined = loop.create_future()
        self.left = loop.create_future()

    def onJoin(self, details):
        self.joined.set_result(details)

    def onLeave(self, details):
        if not self.joined.done():
            self.joined.set_exception(Left(details.reason, details.message))
        if not self.left.done():
            self.left.set_result(details.reason)
        self.disconnect()

    def onUserError(self, fail, msg):
        """Procedures here fail on purpose; the caller checks what arrives."""


class Returning(Peer):
    """A session that can be resumed. `before`: the WELCOME of the one it wants to have back."""

    def __init__(self, config, before=None):
        super().__init__(config)
        self.before = before
        self.welcome = None

    def onConnect(self):
        session = self.before and self.before.session
        token = self.before and self.before.resume_token
        self.join(self.config.realm, resumable=True, resume_session=session, resume_token=token)

    def onMessage(self, message):
        # What it says of resumption is not among the details of `onJoin`.
        if isinstance(message, Welcome):
            self.welcome = message
        return super().onMessage(message)


async def join(url, serializer, realm=REALM, of=Peer):
    """Opens a session over `ws://` or `rs://`. Raises `Left` when the router refuses it."""
    sessions = []

    def make(config):
        sessions.append(of(config))
        return sessions[0]

    runner = ApplicationRunner(url, realm, serializers=[serializer_of(serializer)])
    await asyncio.wait_for(runner.run(make, start_loop=False), PATIENCE_S)
    while not sessions:
        await asyncio.sleep(0)
    await asyncio.wait_for(sessions[0].joined, PATIENCE_S)
    return sessions[0]


def values():
    """The values that every peer must get exactly as they were sent."""
    path = pathlib.Path(__file__).parent.parent / "values.json"
    return {name: _with_binary(value) for name, value in json.loads(path.read_text()).items()}


def _with_binary(value):
    if isinstance(value, dict):
        if list(value) == ["$binary"]:
            return base64.b64decode(value["$binary"])
        return {key: _with_binary(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_binary(inner) for inner in value]
    return value


def same(one, other):
    """Equality that tells booleans from numbers and text from bytes, but not 1.0 from 1."""
    if isinstance(one, bool) or isinstance(other, bool) or one is None or other is None:
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


class Results:
    """Prints one line a case; run.sh counts them."""

    def __init__(self):
        self.failures = 0

    def passed(self, name):
        print(f"passed  {name}", flush=True)

    def failed(self, name, why):
        self.failures += 1
        print(f"FAILED  {name}: {why}", flush=True)

    async def run(self, name, case):
        """Awaits a case; anything it raises fails it."""
        try:
            await asyncio.wait_for(case, PATIENCE_S * 2)
        except Exception as error:  # noqa: BLE001: whatever it is, it is the result
            self.failed(name, f"{type(error).__name__}: {error}".replace("\n", " "))
        else:
            self.passed(name)
