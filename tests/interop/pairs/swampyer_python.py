"""swampyer behind the commands of adapter.py. It answers calls with one value and errors of its own."""

import os
import sys

import swampyer

import adapter


def fail(_event, *_args, **_kwargs):
    raise RuntimeError("on purpose")


PROCEDURES = {
    "echo": lambda _event, value=None, **_kwargs: value,
    "named": lambda _event, *_args, **kwargs: kwargs,
    "fail": fail,
}


class Client:
    def __init__(self, url, serializer, realm):
        self.inbox = adapter.Inbox()
        self.client = swampyer.WAMPClient(url=url, realm=realm, serializers=[serializer], auto_reconnect=False)
        self.client.start()

    def register(self, uri, name, **options):
        details = {key: value for key, value in options.items() if value}
        self.client.register(uri, PROCEDURES[name], details=details)

    def call(self, uri, args=(), kwargs=None):
        try:
            return self.client.call(uri, *args, **(kwargs or {}))
        except swampyer.ExInvocationError as error:
            # The library keeps the arguments of an ERROR, not its URI.
            error.uri = "error"
            raise

    def subscribe(self, uri, **options):
        def put(event, *_args, **_kwargs):
            self.inbox.put(event.args, event.kwargs, adapter.told(event.details))

        self.client.subscribe(uri, put, options=options)

    def publish(self, uri, args=(), kwargs=None, **options):
        # Given options, it asks for no acknowledgement of its own accord.
        self.client.publish(uri, args=list(args), kwargs=kwargs or {}, options={"acknowledge": True, **options})

    def take(self, **command):
        return self.inbox.take(**command)


adapter.serve(Client(*sys.argv[1:]))
os._exit(0)
