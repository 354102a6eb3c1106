"""xconn-core (a Rust runtime with a Python surface) behind the commands of adapter.py."""

import os
import sys

import xconn_core
from xconn_core import ApplicationError, Result

import adapter

SERIALIZERS = {
    "json": xconn_core.JSONSerializer,
    "msgpack": xconn_core.MsgPackSerializer,
    "cbor": xconn_core.CBORSerializer,
}


def fail(_invocation):
    raise ApplicationError(adapter.FAILED, "on purpose")


def progress(invocation):
    for number in (1, 2, 3):
        invocation.send_progress(number)
    return Result(["done"])


PROCEDURES = {
    "echo": lambda invocation: Result([(invocation.args or [None])[0]]),
    "named": lambda invocation: Result([invocation.kwargs or {}]),
    "fail": fail,
    "caller": lambda invocation: Result([(invocation.details or {}).get("caller")]),
    "progress": progress,
}


class Client:
    def __init__(self, url, serializer, realm):
        self.inbox = adapter.Inbox()
        self.session = xconn_core.Client(serializer=SERIALIZERS[serializer]()).connect(url, realm)

    def register(self, uri, name, **options):
        request = self.session.register(uri, PROCEDURES[name])
        for key, value in options.items():
            if value:
                request = request.option(key, value)
        request.execute()

    def call(self, uri, args=(), kwargs=None):
        result = self.session.call(uri).args(*args).kwargs(**(kwargs or {})).execute()
        return (result.args or [None])[0]

    def call_progress(self, uri):
        parts = []
        request = self.session.call(uri).on_progress(lambda part: parts.append(part.args[0]))
        return [parts, (request.execute().args or [None])[0]]

    def subscribe(self, uri, **options):
        def put(event):
            self.inbox.put(event.args, event.kwargs, adapter.told(event.details))

        request = self.session.subscribe(uri, put)
        for key, value in options.items():
            request = request.option(key, value)
        request.execute()

    def publish(self, uri, args=(), kwargs=None, **options):
        request = self.session.publish(uri).args(*args).kwargs(**(kwargs or {}))
        for key, value in {"acknowledge": True, **options}.items():
            request = request.option(key, value)
        request.execute()

    def take(self, **command):
        return self.inbox.take(**command)


adapter.serve(Client(*sys.argv[1:]))
os._exit(0)
