"""Sessions over HTTP, by HTTP clients that others wrote, with an Autobahn|Python session over WebSocket as the other side.

    over_http.py HTTP_URL WS_URL

Long-poll goes by httpx and by aiohttp, server-sent events by aiohttp.
"""

import asyncio
import contextlib
import sys

import aiohttp
import httpx
import peers
from autobahn.wamp.serializer import CBORObjectSerializer, JsonObjectSerializer, MsgPackObjectSerializer
from autobahn.wamp.types import PublishOptions

CODECS = {"json": JsonObjectSerializer, "msgpack": MsgPackObjectSerializer, "cbor": CBORObjectSerializer}
PROTOCOLS = [f"{name}{batched}" for name in CODECS for batched in ("", ".batched")]
HELLO = [1, peers.REALM, {"roles": {"caller": {}, "callee": {}, "publisher": {}, "subscriber": {}}}]
ACKNOWLEDGE = PublishOptions(acknowledge=True)


class ByAiohttp:
    async def __aenter__(self):
        self.client = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_):
        await self.client.close()

    async def post(self, url, **body):
        async with self.client.post(url, **body) as answer:
            return answer.status, await answer.read()


class ByHttpx:
    async def __aenter__(self):
        self.client = httpx.AsyncClient(timeout=peers.PATIENCE_S * 2)
        return self

    async def __aexit__(self, *_):
        await self.client.aclose()

    async def post(self, url, **body):
        answer = await self.client.post(url, **{"content" if k == "data" else k: v for k, v in body.items()})
        return answer.status_code, answer.content


class Session:
    """A WAMP session. What its transport receives is read by a task of its own."""

    def __init__(self, http, url, kind, protocol):
        name, _, batched = protocol.partition(".")
        self.http = http
        self.base = f"{url}wamp/{kind}"
        self.kind = kind
        self.protocol = f"wamp.2.{protocol}"
        self.codec = CODECS[name](batched=bool(batched))
        self.request = 0
        self.waiting = {}
        self.events = asyncio.Queue()
        self.invocations = asyncio.Queue()
        self.gone = asyncio.get_running_loop().create_future()

    async def join(self):
        status, body = await self.http.post(f"{self.base}/open", json={"protocols": ["wamp.9", self.protocol]})
        assert status == 200, (status, body)
        opened = JsonObjectSerializer().unserialize(body)[0]
        assert opened["protocol"] == self.protocol, opened
        self.base += "/" + opened["transport"]
        self.reader = asyncio.create_task(self.read_stream() if self.kind == "sse" else self.poll())
        welcome = await self.ask(HELLO, 2)
        assert welcome[0] == 2, welcome

    async def poll(self):
        while True:
            status, body = await self.http.post(f"{self.base}/receive")
            if status == 404:
                return self.gone.set_result("404")
            assert status in (200, 204), (status, body)
            if status == 200:
                for message in self.codec.unserialize(body):
                    self.received(message)

    async def read_stream(self):
        timeout = aiohttp.ClientTimeout(total=None)
        async with self.http.client.get(f"{self.base}/receive", timeout=timeout) as answer:
            assert answer.content_type == "text/event-stream", answer.content_type
            name, data = None, []
            async for line in answer.content:
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    data.append(value)
                elif not field and name == "wamp":
                    self.received(self.codec.unserialize("\n".join(data).encode())[0])
                    name, data = None, []
                elif not field and name:
                    return self.gone.set_result(name)

    def received(self, message):
        code = message[0]
        if code == 36:
            self.events.put_nowait(message)
        elif code == 68:
            self.invocations.put_nowait(message)
        else:
            key = (8, message[2]) if code == 8 else (code, None if code in (2, 3, 6) else message[1])
            waiting = self.waiting.pop(key, None) or self.waiting.pop((key[1],), None)
            assert waiting, message
            waiting.set_result(message)

    async def send(self, message):
        status, body = await self.http.post(f"{self.base}/send", data=self.codec.serialize(message))
        assert status in (202, 204), (status, body)

    async def ask(self, message, answer, request=None):
        waiting = self.waiting[(answer, request)] = asyncio.get_running_loop().create_future()
        await self.send(message)
        return await asyncio.wait_for(waiting, peers.PATIENCE_S)

    async def do(self, code, answer, *rest):
        self.request += 1
        return await self.ask([code, self.request, {}, *rest], answer, self.request)

    async def leave(self):
        goodbye = await self.ask([6, {}, "wamp.close.normal"], 6)
        assert goodbye[2] == "wamp.close.goodbye_and_out", goodbye
        return await asyncio.wait_for(self.gone, peers.PATIENCE_S)


async def use(session, other, prefix, values):
    """Calls and events, both ways."""
    heard = asyncio.Queue()
    await other.register(lambda value: value, f"{prefix}.echo")
    await other.subscribe(heard.put_nowait, f"{prefix}.up")
    assert (await session.do(64, 65, f"{prefix}.double"))[0] == 65
    assert (await session.do(32, 33, f"{prefix}.down"))[0] == 33

    async def serve():
        for _ in values:
            _, request, _, _, args = await session.invocations.get()
            await session.send([70, request, {}, [args[0], args[0]]])

    serving = asyncio.create_task(serve())
    for name, value in values.items():
        result = await session.do(48, 50, f"{prefix}.echo", [value])
        assert peers.same(result[3], [value]), f"{name}: {result!r}"
        double = await other.call(f"{prefix}.double", value)
        assert peers.same(list(double.results), [value, value]), f"{name}: {double!r}"
        await other.publish(f"{prefix}.down", value, options=ACKNOWLEDGE)
        event = await asyncio.wait_for(session.events.get(), peers.PATIENCE_S)
        assert peers.same(event[4], [value]), f"{name}: {event!r}"
        await session.send([16, 1_000 + session.request, {}, f"{prefix}.up", [value]])
        event = await asyncio.wait_for(heard.get(), peers.PATIENCE_S)
        assert peers.same(event, value), f"{name}: {event!r}"
    await serving


async def run(by, url, ws_url, kind, protocol, values):
    other = await peers.join(ws_url, "cbor")
    async with by() as http:
        session = Session(http, url, kind, protocol)
        await session.join()
        await use(session, other, f"interop.http.{by.__name__}.{kind}.{protocol}".lower(), values)
        end = await session.leave()
        assert end == ("session_terminated" if kind == "sse" else "404"), end
        session.reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await session.reader
    await other.leave()


async def main(url, ws_url):
    results = peers.Results()
    values = peers.values()
    for protocol in PROTOCOLS:
        name = f"http: long-poll, {protocol}, by aiohttp"
        await results.run(name, run(ByAiohttp, url, ws_url, "longpoll", protocol, values))
    for protocol in ("json", "cbor.batched"):
        name = f"http: long-poll, {protocol}, by httpx"
        await results.run(name, run(ByHttpx, url, ws_url, "longpoll", protocol, values))
    await results.run("http: events, json, by aiohttp", run(ByAiohttp, url, ws_url, "sse", "json", values))
    return results.failures


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main(*sys.argv[1:])) else 0)
