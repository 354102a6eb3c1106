"""Python and JavaScript peers with all transports and serializers, talking to each other in one run.

    mixed.py WS_URL RS_URL COMMAND...

COMMAND starts js/mixed.js, which gets the two URLs, prints `ready`, and ends when its input does.
"""

import asyncio
import sys

from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import PublishOptions

import peers

EVENTS = "interop.mixed.events"
ACKNOWLEDGE = PublishOptions(acknowledge=True)


def procedure(peer, name):
    return f"interop.mixed.{peer}.{name}"


class MixedPeer:
    """A Python peer: echoes, fails on demand, and collects events."""

    def __init__(self, name, session):
        self.name = name
        self.session = session
        self.events = {}
        self.wrong = []

    async def offer(self, values):
        def fail():
            raise ApplicationError("interop.error.sad", 1, b"\x00\xff", {"in": [2]}, key="value")

        def collect(sender, name, value):
            self.events[sender] = self.events.get(sender, 0) + 1
            if not peers.same(value, values[name]):
                self.wrong.append(f"{name} of {sender}: {value!r}")

        await self.session.register(lambda value: value, procedure(self.name, "echo"))
        await self.session.register(fail, procedure(self.name, "fail"))
        await self.session.subscribe(collect, EVENTS)


async def check_calls(peer, other, values):
    for name, value in values.items():
        echo = await peer.session.call(procedure(other, "echo"), value)
        assert peers.same(echo, value), f"{name}: {echo!r} instead of {value!r}"
    try:
        await peer.session.call(procedure(other, "fail"))
    except ApplicationError as error:
        assert error.error == "interop.error.sad", error.error
        assert peers.same(list(error.args), [1, b"\x00\xff", {"in": [2]}]), error.args
        assert peers.same(error.kwargs, {"key": "value"}), error.kwargs
    else:
        raise AssertionError("a failing procedure did not fail")


async def check_calls_of(controller, caller, callees):
    failures = await controller.call(procedure(caller, "run"), callees)
    assert not failures, failures


async def check_events(peer, senders, values):
    expected = {sender: len(values) for sender in senders if sender != peer.name}
    deadline = asyncio.get_running_loop().time() + peers.PATIENCE_S
    while peer.events != expected and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)
    assert peer.events == expected, f"{peer.events} instead of {expected}"
    assert not peer.wrong, peer.wrong


async def check_events_of(controller, name, senders, values):
    expected = {sender: len(values) for sender in senders if sender != name}
    deadline = asyncio.get_running_loop().time() + peers.PATIENCE_S
    while True:
        report = await controller.call(procedure(name, "events"))
        if report["events"] == expected or asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.02)
    assert report["events"] == expected, f"{report['events']} instead of {expected}"
    assert not report["wrong"], report["wrong"]


async def start_javascript(command):
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    while line := await asyncio.wait_for(process.stdout.readline(), peers.PATIENCE_S):
        words = line.decode().split()
        if words[:1] == ["ready"]:
            return process, words[1:]
    raise RuntimeError("the JavaScript peers ended before they were ready")


async def main(ws_url, rs_url, *command):
    results = peers.Results()
    values = peers.values()
    process, javascript = await start_javascript([*command, ws_url, rs_url])
    mine = []
    for transport, url in (("ws", ws_url), ("rs", rs_url)):
        for serializer in peers.SERIALIZERS:
            peer = MixedPeer(f"python-{transport}-{serializer}", await peers.join(url, serializer))
            await peer.offer(values)
            mine.append(peer)
    everybody = [peer.name for peer in mine] + javascript
    controller = await peers.join(ws_url, "json")

    for peer in mine:
        for other in everybody:
            await results.run(f"mixed: {peer.name} calls {other}", check_calls(peer, other, values))
    for caller in javascript:
        for callee in everybody:
            await results.run(f"mixed: {caller} calls {callee}", check_calls_of(controller, caller, [callee]))
    for peer in mine:
        for name, value in values.items():
            await peer.session.publish(EVENTS, peer.name, name, value, options=ACKNOWLEDGE)
    for name in javascript:
        await controller.call(procedure(name, "publish"))
    for peer in mine:
        await results.run(f"mixed: events at {peer.name}", check_events(peer, everybody, values))
    for name in javascript:
        await results.run(f"mixed: events at {name}", check_events_of(controller, name, everybody, values))

    for session in [*(peer.session for peer in mine), controller]:
        await session.leave()
    process.stdin.close()
    await asyncio.wait_for(process.wait(), peers.PATIENCE_S)
    return results.failures


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main(*sys.argv[1:])) else 0)
