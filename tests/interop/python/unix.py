"""Sessions over a Unix-domain socket, by WebSocket and by RawSocket: a callee that calls itself.

    unix.py SOCKET
"""

import asyncio
import sys

import peers
from autobahn.asyncio.component import Component
from autobahn.asyncio.rawsocket import WampRawSocketClientFactory
from autobahn.wamp.types import ComponentConfig


async def use(session, name):
    await session.register(lambda a, b: a + b, name)
    assert await session.call(name, 2, 3) == 5
    session.leave()


async def by_websocket(socket):
    transport = {
        "type": "websocket",
        "url": "ws://localhost/ws",
        "endpoint": {"type": "unix", "path": socket},
        "serializers": ["json"],
    }
    component = Component(transports=[transport], realm=peers.REALM)
    used = []

    @component.on_join
    async def joined(session, _details):
        await use(session, "com.example.unix.websocket")
        used.append(session)

    await asyncio.wait_for(component.start(loop=asyncio.get_running_loop()), peers.PATIENCE_S)
    assert used, "no session"


async def by_rawsocket(socket):
    """Without a component: Autobahn's does not get RawSocket over such a socket to its end."""
    made = asyncio.get_running_loop().create_future()

    def make():
        made.set_result(peers.Peer(ComponentConfig(peers.REALM, None)))
        return made.result()

    factory = WampRawSocketClientFactory(make, serializer=peers.FORMATS["cbor"]())
    await asyncio.get_running_loop().create_unix_connection(factory, socket)
    session = await asyncio.wait_for(made, peers.PATIENCE_S)
    await asyncio.wait_for(session.joined, peers.PATIENCE_S)
    await use(session, "com.example.unix.rawsocket")
    await asyncio.wait_for(session.left, peers.PATIENCE_S)


async def main(socket):
    results = peers.Results()
    await results.run("python unix: a call by WebSocket", by_websocket(socket))
    await results.run("python unix: a call by RawSocket", by_rawsocket(socket))
    return results.failures


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main(*sys.argv[1:])) else 0)
