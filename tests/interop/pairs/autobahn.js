// Autobahn|JS behind the commands of adapter.py.

'use strict';

const peers = require('../js/peers.js');
const { serve, FAILED, Inbox } = require('./adapter.js');

const PROCEDURES = {
  echo: (args) => (args || [])[0],
  named: (_args, kwargs) => kwargs || {},
  fail: () => {
    throw new peers.autobahn.Error(FAILED, ['on purpose']);
  },
  progress: (_args, _kwargs, details) => {
    [1, 2, 3].forEach((number) => details.progress([number]));
    return 'done';
  },
  caller: (_args, _kwargs, details) => details.caller,
};

/** What a call resolves with: a plain value, or a Result when there is more to it. */
const first = (value) => (value instanceof peers.autobahn.Result ? value.args[0] : value);

async function main(url, serializer, realm) {
  const { session } = await peers.join(url, serializer, realm);
  const inbox = new Inbox();
  await serve({
    async register({ uri, name, ...options }) {
      await session.register(uri, PROCEDURES[name], options);
    },
    async call({ uri, args = [], kwargs = {} }) {
      return first(await session.call(uri, args, kwargs));
    },
    async subscribe({ uri, ...options }) {
      const put = (args, kwargs, details) => inbox.put(args, kwargs, details.publisher || details.topic);
      await session.subscribe(uri, put, options);
    },
    async publish({ uri, args = [], kwargs = {}, ...options }) {
      await session.publish(uri, args, kwargs, { acknowledge: true, ...options });
    },
    take: ({ count, patience }) => inbox.take(count, patience),
  });
  process.exit(0);
}

main(...process.argv.slice(2)).catch((error) => {
  process.stderr.write(`${error.stack || error}\n`);
  process.exit(1);
});
