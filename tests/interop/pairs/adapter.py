"""What every adapter does: one client library behind one line of JSON for each command and each answer.

An adapter is started with URL SERIALIZER REALM and says `{"ready": true}`. Commands are `{"do": name, ...}`; the answer to
each is one line: `{"ok": value}` or `{"error": uri}`. The procedures it registers by name:

    echo      answers its first argument
    named     answers its keyword arguments, as one argument
    fail      answers the error com.example.failed (or what the library has for exceptions)
    progress  answers 1, 2, 3 progressively, then "done"
    caller    answers the session that called, if it is told

An event is [args, kwargs, topic], with the publisher in place of the topic where that is told.
"""

import json
import sys
import threading
import traceback

FAILED = "com.example.failed"
PATIENCE_S = 20


class Inbox:
    """Events of all subscriptions, as (args, kwargs, topic or None)."""

    def __init__(self):
        self.events = []
        self.changed = threading.Condition()

    def put(self, args, kwargs, topic=None):
        with self.changed:
            self.events.append([list(args or []), dict(kwargs or {}), topic])
            self.changed.notify_all()

    def take(self, count, patience=PATIENCE_S):
        """The next events, or those that came in time."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.events) >= count, patience)
            taken, self.events = self.events[:count], self.events[count:]
            return taken


def told(details):
    """What an event says of where it comes from."""
    details = details or {}
    return details.get("publisher") or details.get("topic")


def answer(line):
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def serve(client):
    """Answers commands with the client's methods of the same name until the input ends. A method answers a value, or
    raises: an exception with a `uri` is the answer, any other one is told as it is."""
    answer({"ready": True})
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer({"ok": getattr(client, command.pop("do"))(**command)})
        except Exception as error:  # noqa: BLE001: whatever it is, it is the answer
            uri = getattr(error, "uri", None) or getattr(error, "message", None) or getattr(error, "error", None)
            traceback.print_exc(file=sys.stderr)
            answer({"error": uri if isinstance(uri, str) else f"{type(error).__name__}: {error}"})
