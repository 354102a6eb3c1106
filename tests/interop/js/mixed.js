// The JavaScript peers of python/mixed.py: they echo, fail and call on demand, publish and collect events.
//
//     mixed.js WS_URL RS_URL
//
// Prints `ready` and the names of its peers; ends when its input does.

'use strict';

const peers = require('./peers.js');
const { autobahn, same, show } = peers;

const [wsUrl] = process.argv.slice(2);
const EVENTS = 'interop.mixed.events';
const VALUES = peers.values();
const SAD = { args: [1, Buffer.from([0, 255]), { in: [2] }], kwargs: { key: 'value' } };

function procedure(peer, name) {
  return `interop.mixed.${peer}.${name}`;
}

/** What is wrong with the answers of a callee. */
async function callAll(session, callee) {
  const wrong = [];
  for (const [name, value] of Object.entries(VALUES)) {
    const echo = await session.call(procedure(callee, 'echo'), [value]);
    if (!same(echo, value)) wrong.push(`${callee}: ${name}: ${show(echo)} instead of ${show(value)}`);
  }
  try {
    await session.call(procedure(callee, 'fail'));
    wrong.push(`${callee}: a failing procedure did not fail`);
  } catch (error) {
    const right = error.error === 'interop.error.sad' && same({ args: error.args, kwargs: error.kwargs }, SAD);
    if (!right) wrong.push(`${callee}: ${show(error)}`);
  }
  return wrong;
}

async function offer(name, { session }) {
  const events = {};
  const wrong = [];
  await session.subscribe(EVENTS, ([sender, key, value]) => {
    events[sender] = (events[sender] || 0) + 1;
    if (!same(value, VALUES[key])) wrong.push(`${key} of ${sender}: ${show(value)}`);
  });
  await session.register(procedure(name, 'echo'), (args) => args[0]);
  await session.register(procedure(name, 'fail'), () => {
    throw new autobahn.Error('interop.error.sad', SAD.args, SAD.kwargs);
  });
  await session.register(procedure(name, 'events'), () => ({ events, wrong }));
  await session.register(procedure(name, 'publish'), async () => {
    for (const [key, value] of Object.entries(VALUES)) {
      await session.publish(EVENTS, [name, key, value], {}, { acknowledge: true });
    }
    return true;
  });
  await session.register(procedure(name, 'run'), async ([callees]) => {
    const wrong = [];
    for (const callee of callees) wrong.push(...(await callAll(session, callee)));
    return wrong;
  });
}

async function main() {
  const names = [];
  const opened = [];
  for (const serializer of ['json', 'msgpack', 'cbor']) {
    const name = `js-ws-${serializer}`;
    const peer = await peers.patiently(peers.join(wsUrl, serializer), 'a session');
    await offer(name, peer);
    names.push(name);
    opened.push(peer);
  }
  peers.print(`ready ${names.join(' ')}`);
  process.stdin.resume();
  process.stdin.on('end', async () => {
    for (const peer of opened) await peers.leave(peer);
    process.exit(0);
  });
}

main().catch((error) => {
  process.stderr.write(`${error.stack || show(error)}\n`);
  process.exit(1);
});
