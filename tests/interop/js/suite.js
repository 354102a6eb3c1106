// Autobahn|JS as publisher, subscriber, caller and callee of one node, on one transport and serializer.
//
//     suite.js URL SERIALIZER

'use strict';

const peers = require('./peers.js');
const { autobahn, same, show } = peers;

const [url, serializer] = process.argv.slice(2);
const transport = url.split(':')[0];
const ACKNOWLEDGE = { acknowledge: true };
const LARGE_BYTES = 200000;

/** A subscription's handler that can be awaited. */
class Inbox {
  constructor() {
    this.events = [];
    this.waiting = [];
    this.handler = (args, kwargs, details) => {
      const event = { args: args || [], kwargs: kwargs || {}, details };
      const next = this.waiting.shift();
      if (next) next(event);
      else this.events.push(event);
    };
  }

  take() {
    if (this.events.length) return Promise.resolve(this.events.shift());
    return peers.patiently(new Promise((resolve) => this.waiting.push(resolve)), 'an event');
  }
}

function check(condition, what) {
  if (!condition) throw new Error(what);
}

/** Awaits an error with this URI (any WAMP error without) and returns it. */
async function refused(call, uri) {
  let result;
  try {
    result = await peers.patiently(call, 'an error');
  } catch (error) {
    if (!error.error) throw error;
    check(uri ? error.error === uri : error.error.startsWith('wamp.error.'), `${error.error} instead of ${uri}`);
    return error;
  }
  throw new Error(`no error, but ${show(result)}`);
}

const CASES = {
  async 'events carry args and kwargs'({ join, uri }) {
    const [publisher, subscriber, inbox] = [await join(), await join(), new Inbox()];
    await subscriber.session.subscribe(uri('topic'), inbox.handler);
    const publication = await publisher.session.publish(uri('topic'), [1, 'two', [3]], { key: 'value' }, ACKNOWLEDGE);
    const event = await inbox.take();
    check(same(event.args, [1, 'two', [3]]) && same(event.kwargs, { key: 'value' }), show(event));
    check(event.details.publication === publication.id, 'PUBLISHED and EVENT name another publication');
  },

  async 'events arrive in order'({ join, uri }) {
    const [publisher, subscriber, inbox] = [await join(), await join(), new Inbox()];
    await subscriber.session.subscribe(uri('topic'), inbox.handler);
    // Autobahn's CBOR serializer is asynchronous, so each is awaited.
    for (let number = 0; number < 200; number++) {
      await publisher.session.publish(uri('topic'), [number], {}, ACKNOWLEDGE);
    }
    for (let number = 0; number < 200; number++) {
      const event = await inbox.take();
      check(event.args[0] === number, `${event.args[0]} instead of ${number}`);
    }
  },

  async 'a publisher does not get its own event'({ join, uri }) {
    const [publisher, subscriber, own, other] = [await join(), await join(), new Inbox(), new Inbox()];
    await publisher.session.subscribe(uri('topic'), own.handler);
    await subscriber.session.subscribe(uri('topic'), other.handler);
    await publisher.session.publish(uri('topic'), [1], {}, ACKNOWLEDGE);
    await subscriber.session.publish(uri('topic'), [2], {}, ACKNOWLEDGE);
    check((await other.take()).args[0] === 1, 'the other subscriber got something else');
    check((await own.take()).args[0] === 2, 'its own event came first');
  },

  async 'no event after unsubscribe'({ join, uri }) {
    const [publisher, subscriber, inbox, marks] = [await join(), await join(), new Inbox(), new Inbox()];
    const subscription = await subscriber.session.subscribe(uri('topic'), inbox.handler);
    await subscriber.session.subscribe(uri('mark'), marks.handler);
    await publisher.session.publish(uri('topic'), [1], {}, ACKNOWLEDGE);
    await inbox.take();
    await subscriber.session.unsubscribe(subscription);
    await publisher.session.publish(uri('topic'), [2], {}, ACKNOWLEDGE);
    // What was published before the mark would have come before it.
    await publisher.session.publish(uri('mark'), [], {}, ACKNOWLEDGE);
    await marks.take();
    check(inbox.events.length === 0, 'an event came');
  },

  async 'calls carry args and kwargs'({ join, uri }) {
    const [callee, caller] = [await join(), await join()];
    await callee.session.register(uri('echo'), (args, kwargs) => [args, kwargs]);
    check(same(await caller.session.call(uri('echo'), [1, 'two'], { key: [3] }), [[1, 'two'], { key: [3] }]), 'echo');
  },

  async 'results carry args and kwargs'({ join, uri }) {
    const [callee, caller] = [await join(), await join()];
    await callee.session.register(uri('pair'), () => new autobahn.Result([1, 2], { key: 'value' }));
    const result = await caller.session.call(uri('pair'));
    check(same([result.args, result.kwargs], [[1, 2], { key: 'value' }]), show(result));
  },

  async 'values survive events and calls'({ join, uri }) {
    const [one, other, inbox] = [await join(), await join(), new Inbox()];
    await other.session.register(uri('echo'), (args) => args[0]);
    await other.session.subscribe(uri('topic'), inbox.handler);
    for (const [name, value] of Object.entries(peers.values())) {
      if (transport !== 'ws' && peers.hasBinary(value)) continue; // its JSON knows no binary
      const echo = await one.session.call(uri('echo'), [value]);
      check(same(echo, value), `${name}: ${show(echo)} instead of ${show(value)} from a call`);
      await one.session.publish(uri('topic'), [value], { key: value }, ACKNOWLEDGE);
      const event = await inbox.take();
      check(same(event.args, [value]), `${name}: ${show(event.args)} instead of ${show(value)} from an event`);
      check(same(event.kwargs, { key: value }), `${name}: ${show(event.kwargs)} in kwargs`);
    }
  },

  async 'large payloads pass'({ join, uri }) {
    const [callee, caller] = [await join(), await join()];
    await callee.session.register(uri('echo'), (args) => args[0]);
    const text = 'x'.repeat(LARGE_BYTES);
    check((await caller.session.call(uri('echo'), [text])) === text, 'a long text changed');
    if (transport === 'ws') {
      const bytes = Buffer.alloc(LARGE_BYTES, Buffer.from([...Array(256).keys()]));
      check(same(await caller.session.call(uri('echo'), [bytes]), bytes), 'long binary changed');
    }
  },

  async 'concurrent calls get their own results'({ join, uri }) {
    const [callee, caller] = [await join(), await join()];
    await callee.session.register(
      uri('double'),
      ([number]) => new Promise((resolve) => setTimeout(() => resolve(2 * number), (200 - number) / 10)),
    );
    const numbers = [...Array(200).keys()];
    const results = await Promise.all(numbers.map((number) => caller.session.call(uri('double'), [number])));
    check(same(results, numbers.map((number) => 2 * number)), show(results));
  },

  async 'application errors carry args and kwargs'({ join, uri }) {
    const [callee, caller] = [await join(), await join()];
    await callee.session.register(uri('fail'), () => {
      throw new autobahn.Error(uri('sad'), [1, 'two', { three: [4] }], { key: 'value' });
    });
    const error = await refused(caller.session.call(uri('fail')), uri('sad'));
    check(same([error.args, error.kwargs], [[1, 'two', { three: [4] }], { key: 'value' }]), show(error));
  },

  async 'exceptions become runtime errors'({ join, uri }) {
    const [callee, caller] = [await join(), await join()];
    await callee.session.register(uri('fail'), () => {
      throw new TypeError('no such luck');
    });
    await refused(caller.session.call(uri('fail')), 'wamp.error.runtime_error');
  },

  async 'unknown procedures are refused'({ join, uri }) {
    await refused((await join()).session.call(uri('nobody'), [1]), 'wamp.error.no_such_procedure');
  },

  async 'a procedure is registered once and free after unregister'({ join, uri }) {
    const [one, other] = [await join(), await join()];
    const registration = await one.session.register(uri('taken'), () => 1);
    await refused(other.session.register(uri('taken'), () => 2), 'wamp.error.procedure_already_exists');
    await one.session.unregister(registration);
    await refused(other.session.call(uri('taken')), 'wamp.error.no_such_procedure');
    await other.session.register(uri('taken'), () => 2);
    check((await one.session.call(uri('taken'))) === 2, 'the new callee was not called');
  },

  async 'a callee that says goodbye fails its calls'({ join, uri }) {
    const [callee, caller, called] = [await join(), await join(), peers.deferred()];
    await callee.session.register(uri('hang'), () => {
      called.resolve();
      return new Promise(() => {});
    });
    const call = refused(caller.session.call(uri('hang')));
    await peers.patiently(called.promise, 'the invocation');
    await peers.leave(callee);
    await call;
  },

  async 'goodbye is answered'({ join }) {
    const reason = await peers.leave(await join());
    check(reason === 'wamp.close.goodbye_and_out', reason);
  },

  async 'an unknown realm is refused'({ join }) {
    let reason;
    try {
      await join('interop.no.such.realm');
    } catch (error) {
      reason = error.reason;
    }
    check(reason === 'wamp.error.no_such_realm', `${reason}`);
  },
};

async function main() {
  let failures = 0;
  let number = 0;
  for (const [name, run] of Object.entries(CASES)) {
    const opened = [];
    const prefix = `interop.js.${++number}`;
    const join = async (realm) => {
      const peer = await peers.patiently(peers.join(url, serializer, realm), 'a session');
      opened.push(peer);
      return peer;
    };
    try {
      await run({ join, uri: (last) => `${prefix}.${last}` });
      for (const peer of opened) await peers.leave(peer);
      peers.print(`passed  js ${transport} ${serializer}: ${name}`);
    } catch (error) {
      failures += 1;
      const why = String(error.message || show(error)).replace(/\n/g, ' ');
      peers.print(`FAILED  js ${transport} ${serializer}: ${name}: ${why}`);
      for (const peer of opened) if (peer.session.isOpen) peer.connection.close();
    }
  }
  process.exit(failures ? 1 : 0);
}

main();
