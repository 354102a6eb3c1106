// Wampy.js behind the commands of adapter.py.

'use strict';

const { Wampy } = require('wampy');
const { JsonSerializer } = require('wampy/JsonSerializer.js');
const { MsgpackSerializer } = require('wampy/MsgpackSerializer.js');
const { CborSerializer } = require('wampy/CborSerializer.js');
const WebSocket = require('ws');
const { serve, FAILED, Inbox } = require('./adapter.js');

const SERIALIZERS = { json: JsonSerializer, msgpack: MsgpackSerializer, cbor: CborSerializer };

class Failed extends Error {
  constructor() {
    super('on purpose');
    // What Wampy puts into the ERROR.
    this.error = FAILED;
  }
}

const PROCEDURES = {
  echo: ({ argsList = [] }) => ({ argsList: [argsList[0]] }),
  named: ({ argsDict }) => ({ argsList: [argsDict || {}] }),
  fail: () => {
    throw new Failed();
  },
  progress: ({ result_handler }) => {
    [1, 2, 3].forEach((number) => result_handler({ argsList: [number], options: { progress: true } }));
    return { argsList: ['done'] };
  },
};

async function main(url, serializer, realm) {
  const client = new Wampy(url, { realm, ws: WebSocket, serializer: new SERIALIZERS[serializer](), autoReconnect: false });
  await client.connect();
  const inbox = new Inbox();
  const first = ({ argsList = [] }) => argsList[0];
  await serve({
    async register({ uri, name, match, invoke }) {
      await client.register(uri, PROCEDURES[name], { ...(match && { match }), ...(invoke && { invoke }) });
    },
    async call({ uri, args = [], kwargs = {} }) {
      return first(await client.call(uri, { argsList: args, argsDict: kwargs }));
    },
    async call_progress({ uri }) {
      const parts = [];
      const final = await client.call(uri, null, { progress_callback: (part) => parts.push(first(part)) });
      return [parts, first(final)];
    },
    async subscribe({ uri, ...options }) {
      const put = ({ argsList, argsDict, details }) => inbox.put(argsList, argsDict, details.publisher || details.topic);
      await client.subscribe(uri, put, options);
    },
    async publish({ uri, args = [], kwargs = {}, ...options }) {
      await client.publish(uri, { argsList: args, argsDict: kwargs }, options);
    },
    take: ({ count, patience }) => inbox.take(count, patience),
  });
  process.exit(0);
}

main(...process.argv.slice(2)).catch((error) => {
  process.stderr.write(`${error.stack || error}\n`);
  process.exit(1);
});
