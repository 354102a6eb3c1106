"""Autobahn|Python peers with all serializers on all nodes of a cluster, talking to each other.

    cluster.py URL...

Each URL is another node's.
"""

import asyncio
import sys

import mixed
import peers


async def main(*urls):
    results = peers.Results()
    values = peers.values()
    everybody = []
    for node, url in enumerate(urls):
        for serializer in peers.SERIALIZERS:
            peer = mixed.MixedPeer(f"node{node}-{serializer}", await peers.join(url, serializer))
            await peer.offer(values)
            everybody.append(peer)
    names = [peer.name for peer in everybody]
    for peer in everybody:
        for other in names:
            await results.run(f"cluster: {peer.name} calls {other}", mixed.check_calls(peer, other, values))
    for peer in everybody:
        for name, value in values.items():
            await peer.session.publish(mixed.EVENTS, peer.name, name, value, options=mixed.ACKNOWLEDGE)
    for peer in everybody:
        await results.run(f"cluster: events at {peer.name}", mixed.check_events(peer, names, values))
    for peer in everybody:
        await peer.session.leave()
    return results.failures


if __name__ == "__main__":
    sys.exit(1 if asyncio.run(main(*sys.argv[1:])) else 0)
