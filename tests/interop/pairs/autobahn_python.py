"""Autobahn|Python behind the commands of adapter.py."""

import asyncio
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "python"))

from autobahn.wamp.exception import ApplicationError  # noqa: E402
from autobahn.wamp.types import (  # noqa: E402
    CallOptions,
    CallResult,
    PublishOptions,
    RegisterOptions,
    SubscribeOptions,
)

import adapter  # noqa: E402
import peers  # noqa: E402


async def progress(details=None):
    for number in (1, 2, 3):
        details.progress(number)
        await asyncio.sleep(0)
    return "done"


def fail(*_args, **_kwargs):
    raise ApplicationError(adapter.FAILED, "on purpose")


PROCEDURES = {
    "echo": lambda value=None, **_kwargs: value,
    "named": lambda *_args, **kwargs: kwargs,
    "fail": fail,
    "progress": progress,
    "caller": lambda *_args, details=None, **_kwargs: details.caller,
}
DETAILED = {"progress", "caller"}


class Client:
    def __init__(self, session):
        self.session = session
        self.events = asyncio.Queue()

    async def register(self, uri, name, match=None, invoke=None):
        options = RegisterOptions(match=match, invoke=invoke, details_arg="details" if name in DETAILED else None)
        await self.session.register(PROCEDURES[name], uri, options)

    async def call(self, uri, args=(), kwargs=None):
        result = await self.session.call(uri, *args, **(kwargs or {}))
        return result.results[0] if isinstance(result, CallResult) else result

    async def call_progress(self, uri):
        parts = []
        final = await self.session.call(uri, options=CallOptions(on_progress=parts.append))
        return [parts, final]

    async def subscribe(self, uri, **options):
        def put(*args, details=None, **kwargs):
            self.events.put_nowait([list(args), kwargs, details.publisher or details.topic])

        await self.session.subscribe(put, uri, SubscribeOptions(details_arg="details", **options))

    async def publish(self, uri, args=(), kwargs=None, **options):
        options = PublishOptions(acknowledge=True, **options)
        await self.session.publish(uri, *args, options=options, **(kwargs or {}))

    async def take(self, count, patience=adapter.PATIENCE_S):
        taken = []
        try:
            async with asyncio.timeout(patience):
                while len(taken) < count:
                    taken.append(await self.events.get())
        except TimeoutError:
            pass
        return taken


async def main(url, serializer, realm):
    client = Client(await peers.join(url, serializer, realm))
    adapter.answer({"ready": True})
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        try:
            adapter.answer({"ok": await getattr(client, command.pop("do"))(**command)})
        except ApplicationError as error:
            adapter.answer({"error": error.error})
        except Exception as error:  # noqa: BLE001: whatever it is, it is the answer
            adapter.answer({"error": f"{type(error).__name__}: {error}"})
    await client.session.leave()


asyncio.run(main(*sys.argv[1:]))
