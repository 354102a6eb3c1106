"""xconn behind the commands of adapter.py."""

import os
import sys

from wampproto.serializers import CBORSerializer, JSONSerializer, MsgPackSerializer
from xconn import Client as Connection
from xconn.exception import ApplicationError
from xconn.types import Result

import adapter

SERIALIZERS = {"json": JSONSerializer, "msgpack": MsgPackSerializer, "cbor": CBORSerializer}


def fail(_invocation):
    raise ApplicationError(adapter.FAILED, "on purpose")


PROCEDURES = {
    "echo": lambda invocation: Result([(invocation.args or [None])[0]]),
    "named": lambda invocation: Result([invocation.kwargs or {}]),
    "fail": fail,
    "caller": lambda invocation: Result([(invocation.details or {}).get("caller")]),
}


class Client:
    def __init__(self, url, serializer, realm):
        self.inbox = adapter.Inbox()
        self.session = Connection(serializer=SERIALIZERS[serializer]()).connect(url, realm)

    def register(self, uri, name, **options):
        self.session.register(uri, PROCEDURES[name], options={key: value for key, value in options.items() if value})

    def call(self, uri, args=(), kwargs=None):
        return (self.session.call(uri, list(args), kwargs or {}).args or [None])[0]

    def subscribe(self, uri, **options):
        def put(event):
            self.inbox.put(event.args, event.kwargs, adapter.told(event.details))

        self.session.subscribe(uri, put, options=options)

    def publish(self, uri, args=(), kwargs=None, **options):
        self.session.publish(uri, list(args), kwargs or {}, options={"acknowledge": True, **options})

    def take(self, **command):
        return self.inbox.take(**command)


adapter.serve(Client(*sys.argv[1:]))
# Its reader thread would go on.
os._exit(0)
