"""Other people's clients in all pairs: each as caller, callee, publisher and subscriber of each.

    run.py [--only CLIENT] [--jobs N] NODE_MODULES RUST_CLIENTS URL...

NODE_MODULES is where the JavaScript clients are, RUST_CLIENTS the executable made from ../rust; each is empty for none. With
--only, the pairs that have this client in them; with --jobs, so many pairs at a time. With two URLs (ws://..., of two nodes) one side of each pair
is on the first and the other on the second. Prints `passed`, `FAILED` and `skipped` lines; run.sh counts them.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import select
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
REALM = "realm1"
PATIENCE_S = 30
FAILED = "com.example.failed"
# Beyond these, what serializers and languages make of a value is theirs; ../values.json is for the exact ones.
VALUES = ["text äöü 語", 7, -3, 2.5, True, None, [1, "two", [3]], {"a": {"b": [1]}}]

SERIALIZERS = ["json", "msgpack", "cbor"]
BATCHED = [f"{serializer}.batched" for serializer in SERIALIZERS]
# Who says who it is (publisher), asks for that (callee), and tells it (subscriber).
DISCLOSURE = {"publisher", "subscriber", "callee"}

# What each adapter can do beyond calls, registrations, publications and subscriptions with patterns. `values`: those of
# VALUES that it can carry.
CLIENTS = {
    "autobahn-python": {
        "file": "autobahn_python.py",
        "progress": {"caller", "callee"},
        "serializers": [*SERIALIZERS, *BATCHED],
        "disclosure": {"subscriber"},
    },
    # Its callers need a promise library of their own for progress.
    "autobahn-js": {"file": "autobahn.js", "progress": {"callee"}},
    # It says `exclude_me` only when that is so anyway, and `retain` never.
    "wampy.js": {
        "file": "wampy.js",
        "progress": {"caller", "callee"},
        "own_events": False,
        "disclosure": {"publisher", "subscriber"},
        "retained": {"subscriber"},
    },
    "xconn": {"file": "xconn_python.py"},
    "xconn-core": {"file": "xconn_core_python.py", "progress": {"caller", "callee"}},
    # It raises what came with an ERROR without the URI, and sends a URI of its own. An event that follows SUBSCRIBED at once
    # comes before it knows its subscription.
    "swampyer": {"file": "swampyer_python.py", "error_uri": False, "retained": {"publisher"}, "disclosure": {"publisher", "subscriber"}},
    # Its numbers are integers that are not negative.
    "battler-wamp": {
        "rust": True,
        "progress": {"caller", "callee"},
        "serializers": ["json", "msgpack"],
        "retained": set(),
        "disclosure": set(),
        "values": lambda value: not isinstance(value, (float, int)) or value >= 0 and isinstance(value, int),
    },
    "wampproto": {"rust": True, "progress": {"caller", "callee"}},
}


class Wrong(Exception):
    pass


class Adapter:
    """One process of one client."""

    def __init__(self, name, url, serializer, node_modules, rust_clients):
        file = HERE / CLIENTS[name].get("file", "")
        if "rust" in CLIENTS[name]:
            command = [rust_clients, name]
        elif file.suffix == ".js":
            command = ["node", "--no-deprecation", *NODE_FLAGS, str(file)]
        else:
            command = [sys.executable, str(file)]
        environment = dict(os.environ, NODE_PATH=node_modules, PYTHONDONTWRITEBYTECODE="1")
        self.process = subprocess.Popen(
            [*command, url, serializer, REALM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            bufsize=1,
        )

    def ready(self):
        if self.line() != {"ready": True}:
            raise Wrong("it did not get ready")
        return self

    def line(self):
        while True:
            if not select.select([self.process.stdout], [], [], PATIENCE_S)[0]:
                raise Wrong("no answer in time")
            line = self.process.stdout.readline()
            if not line:
                raise Wrong(f"it ended: {self.process.stderr.read()[-500:]}")
            if line.startswith("{"):
                return json.loads(line)

    def ask(self, do, **command):
        try:
            self.process.stdin.write(json.dumps({"do": do, **command}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # Why it ended is told below.
        return self.line()

    def do(self, do, **command):
        answer = self.ask(do, **command)
        if "error" in answer:
            raise Wrong(f"{do} {command}: {answer['error']}")
        return answer["ok"]

    def stop(self):
        if self.process.stdout.closed:
            return
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


def say(line):
    # In one write: other pairs say theirs at the same time.
    sys.stdout.write(line.replace("\n", " ") + "\n")
    sys.stdout.flush()


def expect(got, wanted, what):
    if got != wanted:
        raise Wrong(f"{what}: {got!r} instead of {wanted!r}")


def offer(one, other, uri, name, **options):
    """`other` registers; returns once `one` reaches it. Another node hears of it a moment later, and of what was registered
    first, first."""
    other.do("register", uri=uri, name=name, **options)
    other.do("register", uri=f"{uri}_ready", name="echo")
    until = time.monotonic() + PATIENCE_S
    while one.ask("call", uri=f"{uri}_ready", args=[1]).get("ok") != 1 and time.monotonic() < until:
        time.sleep(0.01)


def listen(one, other, topic, **options):
    """`other` subscribes; returns once what `one` publishes reaches it, and nothing else is under way."""
    other.do("subscribe", uri=topic, **options)
    topic = options and EXAMPLES[options["match"]](topic) or topic
    until = time.monotonic() + PATIENCE_S
    number = 0
    while time.monotonic() < until:
        number += 1
        one.do("publish", uri=topic, args=["probe", number])
        # The last one sent is the last to come.
        while came := other.do("take", count=1, patience=0.5):
            if came[0][0] == ["probe", number]:
                return
    raise Wrong("no event comes")


EXAMPLES = {"prefix": lambda topic: topic + "fixed.topic", "wildcard": lambda topic: topic.replace("..", ".any.")}


def calls(one, other, uri, values):
    """`one` calls what `other` has registered."""
    offer(one, other, f"{uri}.echo", "echo")
    for value in values:
        expect(one.do("call", uri=f"{uri}.echo", args=[value]), value, "result")
    offer(one, other, f"{uri}.named", "named")
    expect(one.do("call", uri=f"{uri}.named", kwargs={"key": [1, 2]}), {"key": [1, 2]}, "keyword arguments")
    expect(one.ask("call", uri=f"{uri}.nobody").get("ok"), None, "a call of nothing")


def errors(one, other, uri, exact):
    offer(one, other, f"{uri}.fail", "fail")
    answer = one.ask("call", uri=f"{uri}.fail")
    if "error" not in answer:
        raise Wrong(f"a failing procedure did not fail: {answer}")
    if exact:
        expect(answer["error"], FAILED, "error")


def events(one, other, uri, values):
    """`one` publishes, `other` is subscribed."""
    listen(one, other, f"{uri}.topic")
    for value in values:
        one.do("publish", uri=f"{uri}.topic", args=[value], kwargs={"key": 1})
    expect([event[0] for event in other.do("take", count=len(values))], [[value] for value in values], "events")
    listen(one, other, f"{uri}.pre", match="prefix")
    one.do("publish", uri=f"{uri}.prefixed.topic", args=["p"])
    expect(other.do("take", count=1), [[["p"], {}, f"{uri}.prefixed.topic"]], "an event by prefix")
    listen(one, other, f"{uri}..wild", match="wildcard")
    one.do("publish", uri=f"{uri}.any.wild", args=["w"])
    expect(other.do("take", count=1), [[["w"], {}, f"{uri}.any.wild"]], "an event by wildcard")


def patterns(one, other, uri):
    offer(one, other, f"{uri}.pattern", "echo", match="prefix")
    expect(one.do("call", uri=f"{uri}.pattern.of.many", args=["p"]), "p", "result by prefix")


def progress(one, other, uri):
    offer(one, other, f"{uri}.progress", "progress")
    expect(one.do("call_progress", uri=f"{uri}.progress"), [[1, 2, 3], "done"], "progressive results")


def receivers(one, other, uri):
    """Of several publications the one comes that is for everybody, or for this role."""
    listen(one, other, f"{uri}.topic")
    for number, options in enumerate(
        [{"exclude_authrole": ["anonymous"]}, {"eligible_authrole": ["nobody"]}, {"eligible_authrole": ["anonymous"]}]
    ):
        one.do("publish", uri=f"{uri}.topic", args=[number], **options)
    expect([event[0] for event in other.do("take", count=1)], [[2]], "the event for its role")


def exclusion(one, _other, uri):
    one.do("subscribe", uri=f"{uri}.own")
    one.do("publish", uri=f"{uri}.own", args=["excluded"])
    one.do("publish", uri=f"{uri}.own", args=["included"], exclude_me=False)
    expect([event[0] for event in one.do("take", count=1)], [["included"]], "the publisher's own event")


def shared(one, other, uri):
    """Both register, and their answers differ."""
    offer(one, other, f"{uri}.shared", "echo", invoke="roundrobin")
    one.do("register", uri=f"{uri}.shared", name="named", invoke="roundrobin")
    results = [one.do("call", uri=f"{uri}.shared", args=["x"]) for _ in range(4)]
    expect(sorted(map(str, results)), ["x", "x", "{}", "{}"], "results of two callees in turns")


def retained(one, other, uri):
    """An event that was published before anybody was subscribed."""
    one.do("publish", uri=f"{uri}.topic", args=["not kept"])
    one.do("publish", uri=f"{uri}.topic", args=["kept"], retain=True)
    other.do("subscribe", uri=f"{uri}.topic", get_retained=True)
    expect([event[0] for event in other.do("take", count=1)], [["kept"]], "a retained event")


def is_told(asker, session):
    """Whether a session that was told is one of this realm."""
    expect(isinstance(session, int), True, f"{session!r} is told as a session's id")
    expect(asker.do("call", uri="wamp.session.get", args=[session])["session"], session, "who it is")


def told_publisher(one, other, uri):
    listen(one, other, f"{uri}.topic")
    one.do("publish", uri=f"{uri}.topic", args=["hidden"])
    one.do("publish", uri=f"{uri}.topic", args=["told"], disclose_me=True)
    hidden, told = other.do("take", count=2)
    expect([hidden[0], told[0]], [["hidden"], ["told"]], "events")
    expect(isinstance(hidden[2], int), False, "a publisher that did not say who it is")
    is_told(other, told[2])


def told_caller(one, other, uri):
    offer(one, other, f"{uri}.caller", "caller", disclose_caller=True)
    is_told(one, one.do("call", uri=f"{uri}.caller"))


def meta(one, other, uri):
    """`one` asks the router about what `other` holds, and `other` hears of what `one` does."""
    if (count := one.do("call", uri="wamp.session.count")) < 2:
        raise Wrong(f"there are {count} sessions")
    offer(one, other, f"{uri}.held", "echo")
    registration = one.do("call", uri="wamp.registration.lookup", args=[f"{uri}.held"])
    expect(one.do("call", uri="wamp.registration.get", args=[registration])["uri"], f"{uri}.held", "a registration")
    expect(one.do("call", uri="wamp.registration.count_callees", args=[registration]), 1, "callees")
    callees = one.do("call", uri="wamp.registration.list_callees", args=[registration])
    if callees[0] not in one.do("call", uri="wamp.session.list"):
        raise Wrong("the callee is not among the sessions")
    expect(one.do("call", uri="wamp.session.get", args=callees)["authrole"], "anonymous", "the callee's role")
    expect("error" in one.ask("call", uri="wamp.session.get", args=[1]), True, "an unknown session is an error")
    other.do("subscribe", uri="wamp.registration.on_create")
    until, number = time.monotonic() + PATIENCE_S, 0
    # Another node hears of the subscription a moment later.
    while time.monotonic() < until:
        number += 1
        one.do("register", uri=f"{uri}.new{number}", name="echo")
        for args, *_ in other.do("take", count=1, patience=0.5):
            if len(args) == 2 and args[1]["uri"].startswith(f"{uri}.new"):
                return
    raise Wrong("no event tells of the registration")


def testament(one, other, uri):
    """What `one` wants published when its session has ended."""
    listen(one, other, f"{uri}.topic")
    # Its result has no arguments, which swampyer takes for an error.
    one.ask("call", uri="wamp.session.add_testament", args=[f"{uri}.topic", ["the end"], {"key": 1}])
    one.stop()
    # Events of `meta` tell of other pairs as well.
    while (event := (other.do("take", count=1) or [[]])[0]) and event[0] != ["the end"]:
        pass
    expect(event[:2], [["the end"], {"key": 1}], "a testament")


def cases(caller, callee, is_apart):
    one, other = CLIENTS[caller], CLIENTS[callee]
    kept = [side["values"] for side in (one, other) if "values" in side]
    values = [value for value in VALUES if all(keeps(value) for keeps in kept)]
    yield "calls", lambda *peers: calls(*peers, values)
    exact = one.get("error_uri", True) and other.get("error_uri", True)
    yield "errors", lambda *peers: errors(*peers, exact)
    yield "events", lambda *peers: events(*peers, values)
    yield "patterns", patterns
    if "caller" in one.get("progress", ()) and "callee" in other.get("progress", ()):
        yield "progress", progress
    yield "receivers", receivers
    if one.get("own_events", True):
        yield "exclusion", exclusion
    # Each node chooses among its own callees first, and hears of an event that is retained a moment later.
    if not is_apart:
        yield "shared", shared
        both = {"publisher", "subscriber"}
        if "publisher" in one.get("retained", both) and "subscriber" in other.get("retained", both):
            yield "retained", retained
    if "publisher" in one.get("disclosure", DISCLOSURE) and "subscriber" in other.get("disclosure", DISCLOSURE):
        yield "told publisher", told_publisher
    if "callee" in other.get("disclosure", DISCLOSURE):
        yield "told caller", told_caller
    yield "meta", meta
    # It ends `one`.
    yield "testament", testament


def serializer(client, number):
    mine = CLIENTS[client].get("serializers", SERIALIZERS)
    return mine[number % len(mine)]


def pair(caller, callee, urls, node_modules, rust_clients, number):
    # Every pair of serializers comes up among the pairs of clients.
    serializers = (serializer(caller, number), serializer(callee, number // 3))
    name = f"{'pairs' if len(urls) == 1 else 'pairs across nodes'} {caller} ({serializers[0]}) and {callee} ({serializers[1]})"
    adapters = []
    try:
        adapters = [
            Adapter(caller, urls[0], serializers[0], node_modules, rust_clients),
            Adapter(callee, urls[-1], serializers[1], node_modules, rust_clients),
        ]
        one, other = (adapter.ready() for adapter in adapters)
    except Wrong as wrong:
        say(f"FAILED  {name}: {wrong}")
        [adapter.process.kill() for adapter in adapters]
        return
    for case, run in cases(caller, callee, len(urls) > 1):
        try:
            run(one, other, f"interop.pairs.n{number}.{case.replace(' ', '_')}")
        except Wrong as wrong:
            say(f"FAILED  {name}, {case}: {wrong}")
        else:
            say(f"passed  {name}, {case}")
    [adapter.stop() for adapter in adapters]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("node_modules")
    parser.add_argument("rust_clients")
    parser.add_argument("urls", nargs="+")
    asked = parser.parse_args()
    installed = (asked.node_modules, asked.rust_clients)
    clients = [name for name in CLIENTS if is_installed(name, *installed)]
    for name in CLIENTS:
        if name not in clients:
            say(f"skipped pairs with {name}: it is not installed")
    pairs = [(caller, callee) for caller in clients for callee in clients]
    with concurrent.futures.ThreadPoolExecutor(asked.jobs) as pool:
        wanted = [
            pool.submit(pair, *names, asked.urls, *installed, number)
            for number, names in enumerate(pairs)
            if asked.only is None or asked.only in names
        ]
        for done in wanted:
            done.result()


def is_installed(name, node_modules, rust_clients):
    if "rust" in CLIENTS[name]:
        return bool(rust_clients)
    package = {"autobahn-js": "autobahn", "wampy.js": "wampy"}.get(name)
    return package is None or bool(node_modules) and (pathlib.Path(node_modules) / package).is_dir()


def node_flags():
    try:
        version = subprocess.run(["node", "-p", "typeof WebSocket"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return ["--experimental-websocket", "--no-warnings"] if "undefined" in version.stdout else []


NODE_FLAGS = node_flags()

if __name__ == "__main__":
    main()
