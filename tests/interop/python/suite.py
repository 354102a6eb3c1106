"""Autobahn|Python as publisher, subscriber, caller and callee of one node, on one transport and serializer.

    suite.py URL SERIALIZER
"""

import asyncio
import inspect
import random
import sys

from autobahn.wamp.exception import ApplicationError
from autobahn.wamp.types import CallOptions, PublishOptions, RegisterOptions, SubscribeOptions

import peers

ACKNOWLEDGE = PublishOptions(acknowledge=True)
# Beyond what JavaScript has, so not in values.json.
BIG_INTEGERS = [2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**53) - 1, -(2**63)]
LARGE_BYTES = 200_000


class Case:
    """What one case works with: sessions that are closed afterwards, and URIs of its own."""

    number = 0

    def __init__(self, url, serializer):
        self.url = url
        self.serializer = serializer
        self.sessions = []
        Case.number += 1
        self.prefix = f"interop.python.{Case.number}"

    def uri(self, name):
        return f"{self.prefix}.{name}"

    async def join(self, realm=peers.REALM):
        session = await peers.join(self.url, self.serializer, realm)
        self.sessions.append(session)
        return session

    async def close(self):
        for session in self.sessions:
            if session.is_attached():
                await asyncio.wait_for(session.leave(), peers.PATIENCE_S)


class Inbox:
    """A subscription's handler that can be awaited."""

    def __init__(self):
        self.queue = asyncio.Queue()

    def __call__(self, *args, details=None, **kwargs):
        self.queue.put_nowait((list(args), kwargs, details))

    async def take(self):
        return await asyncio.wait_for(self.queue.get(), peers.PATIENCE_S)


async def refused(call, *uris):
    """Awaits an error with one of `uris` (any WAMP error without) and returns it."""
    try:
        result = await call
    except ApplicationError as error:
        if uris:
            assert error.error in uris, f"{error.error} is not in {uris}"
        else:
            assert error.error.startswith("wamp.error."), error.error
        return error
    raise AssertionError(f"no error, but {result!r}")


async def case_a_session_is_resumed(case):
    first = await peers.join(case.url, case.serializer, of=peers.Returning)
    before = first.welcome
    assert (before.resumable, before.resumed) == (True, False) and before.resume_token
    first._transport.abort()
    again = await peers.join(
        case.url, case.serializer, of=lambda config: peers.Returning(config, before)
    )
    case.sessions.append(again)
    assert again.welcome.resumed and again.welcome.session == before.session
    assert again.welcome.resume_token != before.resume_token
    details = await again.call("wamp.session.get", before.session)
    assert details["session"] == before.session, details
    other = await peers.join(
        case.url, case.serializer, of=lambda config: peers.Returning(config, before)
    )
    case.sessions.append(other)
    assert not other.welcome.resumed, "a token is good once"


async def case_events_carry_args_and_kwargs(case):
    publisher, subscriber, inbox = await case.join(), await case.join(), Inbox()
    await subscriber.subscribe(inbox, case.uri("topic"), SubscribeOptions(details_arg="details"))
    publication = await publisher.publish(case.uri("topic"), 1, "two", [3], key="value", options=ACKNOWLEDGE)
    args, kwargs, details = await inbox.take()
    assert (args, kwargs) == ([1, "two", [3]], {"key": "value"}), (args, kwargs)
    assert details.publication == publication.id, "PUBLISHED and EVENT name another publication"


async def case_events_without_payload_arrive(case):
    publisher, subscriber, inbox = await case.join(), await case.join(), Inbox()
    await subscriber.subscribe(inbox, case.uri("topic"))
    publisher.publish(case.uri("topic"))
    publisher.publish(case.uri("topic"), only="kwargs")
    assert (await inbox.take())[:2] == ([], {})
    assert (await inbox.take())[:2] == ([], {"only": "kwargs"})


async def case_events_arrive_in_order_at_every_subscriber(case):
    publisher, inboxes = await case.join(), [Inbox(), Inbox(), Inbox()]
    for inbox in inboxes:
        await (await case.join()).subscribe(inbox, case.uri("topic"))
    for number in range(500):
        publisher.publish(case.uri("topic"), number)
    for inbox in inboxes:
        for number in range(500):
            args, _, _ = await inbox.take()
            assert args == [number], f"{args} instead of {number}"


async def case_a_publisher_does_not_get_its_own_event(case):
    publisher, subscriber, own, other = await case.join(), await case.join(), Inbox(), Inbox()
    await publisher.subscribe(own, case.uri("topic"))
    await subscriber.subscribe(other, case.uri("topic"))
    await publisher.publish(case.uri("topic"), 1, options=ACKNOWLEDGE)
    await subscriber.publish(case.uri("topic"), 2, options=ACKNOWLEDGE)
    assert (await other.take())[0] == [1]
    assert (await own.take())[0] == [2], "its own event came first"


async def case_two_handlers_share_one_subscription(case):
    publisher, subscriber, one, two = await case.join(), await case.join(), Inbox(), Inbox()
    first = await subscriber.subscribe(one, case.uri("topic"))
    second = await subscriber.subscribe(two, case.uri("topic"))
    assert first.id == second.id, "one session got two ids for one topic"
    await publisher.publish(case.uri("topic"), 1, options=ACKNOWLEDGE)
    await one.take()
    await two.take()
    assert one.queue.empty() and two.queue.empty(), "the event came twice"


async def case_no_event_after_unsubscribe(case):
    publisher, subscriber, inbox, marks = await case.join(), await case.join(), Inbox(), Inbox()
    subscription = await subscriber.subscribe(inbox, case.uri("topic"))
    await subscriber.subscribe(marks, case.uri("mark"))
    await publisher.publish(case.uri("topic"), 1, options=ACKNOWLEDGE)
    assert (await inbox.take())[0] == [1]
    await subscription.unsubscribe()
    await publisher.publish(case.uri("topic"), 2, options=ACKNOWLEDGE)
    # What was published before the mark would have come before it.
    await publisher.publish(case.uri("mark"), options=ACKNOWLEDGE)
    await marks.take()
    assert inbox.queue.empty()


async def case_calls_carry_args_and_kwargs(case):
    callee, caller = await case.join(), await case.join()
    await callee.register(lambda *args, **kwargs: [list(args), kwargs], case.uri("echo"))
    result = await caller.call(case.uri("echo"), 1, "two", key=[3])
    assert result == [[1, "two"], {"key": [3]}], result
    assert await caller.call(case.uri("echo")) == [[], {}]


async def case_values_survive_events_and_calls(case):
    one, other, inbox = await case.join(), await case.join(), Inbox()
    await other.register(lambda value: value, case.uri("echo"))
    await other.subscribe(inbox, case.uri("topic"))
    values = {**peers.values(), "big integers": BIG_INTEGERS}
    for name, value in values.items():
        echo = await one.call(case.uri("echo"), value)
        assert peers.same(echo, value), f"{name}: {echo!r} instead of {value!r} from a call"
        one.publish(case.uri("topic"), value, key=value)
        args, kwargs, _ = await inbox.take()
        assert peers.same(args, [value]), f"{name}: {args!r} instead of {value!r} from an event"
        assert peers.same(kwargs, {"key": value}), f"{name}: {kwargs!r} in kwargs"


async def case_large_payloads_pass(case):
    callee, caller = await case.join(), await case.join()
    await callee.register(lambda value: value, case.uri("echo"))
    for value in ["x" * LARGE_BYTES, bytes(range(256)) * (LARGE_BYTES // 256), list(range(LARGE_BYTES // 8))]:
        assert await caller.call(case.uri("echo"), value) == value


async def case_concurrent_calls_get_their_own_results(case):
    callee, caller = await case.join(), await case.join()

    async def double(number):
        # Later calls answer first.
        await asyncio.sleep((200 - number) / 10_000)
        return 2 * number

    await callee.register(double, case.uri("double"))
    results = await asyncio.gather(*(caller.call(case.uri("double"), number) for number in range(200)))
    assert results == [2 * number for number in range(200)]


async def case_invocations_arrive_in_order(case):
    callee, caller, seen = await case.join(), await case.join(), []
    await callee.register(seen.append, case.uri("note"))
    await asyncio.gather(*(caller.call(case.uri("note"), number) for number in range(300)))
    assert seen == list(range(300))


async def case_a_session_may_call_itself(case):
    session = await case.join()
    await session.register(lambda: "me", case.uri("who"))
    assert await session.call(case.uri("who")) == "me"


async def case_application_errors_carry_args_and_kwargs(case):
    callee, caller = await case.join(), await case.join()
    values = [1, "two", {"three": [b"\x00\xff"]}]

    def fail():
        raise ApplicationError(case.uri("sad"), *values, key="value", data=b"\x80")

    await callee.register(fail, case.uri("fail"))
    error = await refused(caller.call(case.uri("fail")), case.uri("sad"))
    assert peers.same(list(error.args), values), error.args
    assert peers.same(error.kwargs, {"key": "value", "data": b"\x80"}), error.kwargs


async def case_exceptions_become_runtime_errors(case):
    callee, caller = await case.join(), await case.join()

    def fail():
        raise ValueError("no such luck")

    await callee.register(fail, case.uri("fail"))
    error = await refused(caller.call(case.uri("fail")), "wamp.error.runtime_error")
    assert "no such luck" in str(error.args)


async def case_unknown_procedures_are_refused(case):
    await refused((await case.join()).call(case.uri("nobody"), 1), "wamp.error.no_such_procedure")


async def case_a_procedure_is_registered_once(case):
    one, other = await case.join(), await case.join()
    await one.register(lambda: 1, case.uri("taken"))
    await refused(other.register(lambda: 2, case.uri("taken")), "wamp.error.procedure_already_exists")
    assert await other.call(case.uri("taken")) == 1


async def case_an_unregistered_procedure_is_free_again(case):
    one, other = await case.join(), await case.join()
    registration = await one.register(lambda: 1, case.uri("moved"))
    await registration.unregister()
    await refused(other.call(case.uri("moved")), "wamp.error.no_such_procedure")
    await other.register(lambda: 2, case.uri("moved"))
    assert await one.call(case.uri("moved")) == 2


async def case_reserved_uris_are_refused(case):
    session = await case.join()
    await refused(session.publish("wamp.reserved", 1, options=ACKNOWLEDGE))
    await refused(session.register(lambda: 0, "wamp.reserved"))


async def case_a_callee_that_says_goodbye_fails_its_calls(case):
    callee, caller, called = await case.join(), await case.join(), asyncio.Event()

    async def hang():
        called.set()
        await asyncio.Event().wait()

    await callee.register(hang, case.uri("hang"))
    call = asyncio.ensure_future(caller.call(case.uri("hang")))
    await asyncio.wait_for(called.wait(), peers.PATIENCE_S)
    await callee.leave()
    await refused(asyncio.wait_for(call, peers.PATIENCE_S))


async def case_a_callee_that_vanishes_fails_its_calls(case):
    callee, caller, called = await case.join(), await case.join(), asyncio.Event()

    async def hang():
        called.set()
        await asyncio.Event().wait()

    await callee.register(hang, case.uri("hang"))
    call = asyncio.ensure_future(caller.call(case.uri("hang")))
    await asyncio.wait_for(called.wait(), peers.PATIENCE_S)
    callee._transport.transport.abort()
    await refused(asyncio.wait_for(call, peers.PATIENCE_S))
    await refused(caller.call(case.uri("hang")), "wamp.error.no_such_procedure")


async def case_goodbye_is_answered(case):
    session = await case.join()
    session.leave()
    reason = await asyncio.wait_for(session.left, peers.PATIENCE_S)
    assert reason == "wamp.close.goodbye_and_out", reason


async def case_an_unknown_realm_is_refused(case):
    try:
        await case.join(realm="interop.no.such.realm")
    except peers.Left as left:
        assert left.reason == "wamp.error.no_such_realm", left.reason
    else:
        raise AssertionError("joined a realm that does not exist")


async def case_registrations_of_a_closed_session_are_gone(case):
    callee, caller = await case.join(), await case.join()
    await callee.register(lambda: 1, case.uri("mine"), RegisterOptions())
    await callee.leave()
    await asyncio.wait_for(callee.left, peers.PATIENCE_S)
    await refused(caller.call(case.uri("mine")), "wamp.error.no_such_procedure")


async def case_sessions_are_told_of_counted_described_and_killed(case):
    watcher, joins, leaves = await case.join(), Inbox(), Inbox()
    await watcher.subscribe(joins, "wamp.session.on_join")
    await watcher.subscribe(leaves, "wamp.session.on_leave")
    before = await watcher.call("wamp.session.count")
    other = await case.join()
    other_id = (await other.joined).session
    details = (await joins.take())[0][0]
    assert details["session"] == other_id, details
    assert await watcher.call("wamp.session.count") == before + 1
    assert other_id in await watcher.call("wamp.session.list", ["anonymous"])
    described = await watcher.call("wamp.session.get", other_id)
    assert described == details, (described, details)
    await refused(watcher.call("wamp.session.get", 1), "wamp.error.no_such_session")
    await watcher.call("wamp.session.kill", other_id, reason="com.example.out", message="begone")
    assert await asyncio.wait_for(other.left, peers.PATIENCE_S) == "com.example.out"
    left = (await leaves.take())[0]
    assert left == [other_id, details["authid"], "anonymous"], left
    mine = (await watcher.joined).session
    await refused(watcher.call("wamp.session.kill", mine), "wamp.error.no_such_session")


async def case_registrations_and_subscriptions_are_found(case):
    watcher, other, inbox = await case.join(), await case.join(), Inbox()
    registration = await other.register(lambda: 1, case.uri("mine"))
    subscription = await other.subscribe(inbox, case.uri("topic"))
    assert await watcher.call("wamp.registration.lookup", case.uri("mine")) == registration.id
    assert await watcher.call("wamp.registration.match", case.uri("other")) is None
    found = await watcher.call("wamp.registration.get", registration.id)
    assert (found["uri"], found["match"], found["invoke"]) == (case.uri("mine"), "exact", "single"), found
    callees = await watcher.call("wamp.registration.list_callees", registration.id)
    assert callees == [(await other.joined).session], callees
    assert subscription.id in (await watcher.call("wamp.subscription.list"))["exact"]
    assert await watcher.call("wamp.subscription.match", case.uri("topic")) == [subscription.id]
    assert await watcher.call("wamp.subscription.count_subscribers", subscription.id) == 1


async def case_testaments_are_published_in_order(case):
    watcher, other, inbox = await case.join(), await case.join(), Inbox()
    await watcher.subscribe(inbox, case.uri("will"))
    add = "wamp.session.add_testament"
    await other.call(add, case.uri("will"), ["destroyed"], {"by": "other"})
    await other.call(add, case.uri("will"), ["flushed"], {}, scope="detached")
    await other.call("wamp.session.flush_testaments", scope="detached")
    await other.call(add, case.uri("will"), ["detached"], {}, scope="detached")
    await other.leave()
    assert (await inbox.take())[:2] == (["detached"], {})
    assert (await inbox.take())[:2] == (["destroyed"], {"by": "other"})


async def case_events_of_the_past_are_told(case):
    """tests/interop/run.sh has the node keep the events below interop.history."""
    publisher, reader = await case.join(), await case.join()
    topic = f"interop.history.{random.randrange(2**53)}"
    published = []
    for n in range(3):
        published.append((await publisher.publish(topic, n, options=ACKNOWLEDGE, name=f"n{n}")).id)
    subscription = await reader.call("wamp.subscription.lookup", "interop.history", {"match": "prefix"})

    async def get(**filters):
        options = CallOptions(details=True)
        result = await reader.call("wamp.subscription.get_events", subscription, topic=topic, options=options, **filters)
        return list(result.results or [])

    events = await get()
    assert [event["publication"] for event in events] == published, events
    assert [event["args"] for event in events] == [[0], [1], [2]], events
    assert events[0]["kwargs"] == {"name": "n0"} and events[0]["details"] == {"topic": topic}, events
    assert [event["args"][0] for event in await get(reverse=True, limit=2)] == [2, 1]
    assert [event["args"][0] for event in await get(after_publication=published[0])] == [1, 2]
    assert [event["args"][0] for event in await get(until_time=events[0]["timestamp"], limit=1)] == [0]


async def main(url, serializer):
    # Autobahn complains about procedures that are still running when their session ends; here that is the point.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    results = peers.Results()
    transport = url.split(":")[0]
    cases = [case for name, case in globals().items() if name.startswith("case_") and inspect.iscoroutinefunction(case)]
    for function in cases:
        case = Case(url, serializer)
        name = function.__name__.removeprefix("case_").replace("_", " ")
        await results.run(f"python {transport} {serializer}: {name}", function(case))
        try:
            await case.close()
        except Exception as error:  # noqa: BLE001: reported like a case of its own
            results.failed(f"python {transport} {serializer}: {name}: closing", repr(error))
    return results.failures


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main(*sys.argv[1:])) else 0)
