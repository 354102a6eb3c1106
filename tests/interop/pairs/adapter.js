// What adapters in JavaScript share; see adapter.py.

'use strict';

const readline = require('readline');

const FAILED = 'com.example.failed';
const PATIENCE_MS = 20000;

class Inbox {
  constructor() {
    this.events = [];
    this.wake = () => {};
  }

  put(args, kwargs, topic) {
    this.events.push([args || [], kwargs || {}, topic || null]);
    this.wake();
  }

  /** The next events, or those that came in time. */
  async take(count, patience) {
    const until = Date.now() + (patience === undefined ? PATIENCE_MS : patience * 1000);
    while (this.events.length < count && Date.now() < until) {
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, until - Date.now());
        this.wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    return this.events.splice(0, count);
  }
}

function answer(line) {
  // Ids fit into a number, whatever a serializer makes of them.
  const text = JSON.stringify(line, (_key, value) => (typeof value === 'bigint' ? Number(value) : value));
  process.stdout.write(`${text}\n`);
}

async function serve(methods) {
  answer({ ready: true });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { do: name, ...command } = JSON.parse(line);
    try {
      answer({ ok: (await methods[name](command)) ?? null });
    } catch (error) {
      const uri = error.errorUri || error.error;
      answer({ error: typeof uri === 'string' ? uri : String(error) });
    }
  }
}

module.exports = { serve, FAILED, Inbox };
