// Autobahn|JS sessions for the interoperability suites.

'use strict';

const fs = require('fs');
const path = require('path');
const util = require('util');

// Autobahn logs every closed connection; what matters is in the results.
console.warn = console.log = () => {};
require('./xhr.js');
const autobahn = require('autobahn');

const REALM = 'realm1';
const PATIENCE_MS = 20000;

/** JSON with byte strings as the WAMP specification has them: "\0" and base64. */
function jsonSerializer() {
  const toText = (bytes) => '\0' + Buffer.from(bytes).toString('base64');
  return new autobahn.serializer.JSONSerializer(
    function (key, value) {
      // Buffer's own toJSON ran before us; the original is in the holder.
      return this[key] instanceof Uint8Array ? toText(this[key]) : value;
    },
    (key, value) =>
      typeof value === 'string' && value.startsWith('\0') ? Buffer.from(value.slice(1), 'base64') : value,
  );
}

const SERIALIZERS = {
  json: jsonSerializer,
  msgpack: () => new autobahn.serializer.MsgpackSerializer(),
  cbor: () => new autobahn.serializer.CBORSerializer(),
};

/** Opens a session over ws://, rs:// or, by long-poll, http://; what is no WebSocket speaks JSON only, and no binary. */
function join(url, serializer, realm = REALM) {
  const { protocol, hostname, port } = new URL(url);
  const transport =
    protocol === 'rs:'
      ? { type: 'rawsocket', host: hostname, port: Number(port) }
      : protocol === 'http:'
        ? { type: 'longpoll', url }
        : { type: 'websocket', url, serializers: [SERIALIZERS[serializer]()] };
  const connection = new autobahn.Connection({
    transports: [transport],
    realm,
    max_retries: 0,
    retry_if_unreachable: false,
    on_user_error: () => {},
  });
  return new Promise((resolve, reject) => {
    let peer;
    connection.onclose = (reason, details) => {
      const why = details.reason || reason;
      if (peer) {
        peer.closed.resolve(why);
      } else {
        reject(Object.assign(new Error(why), { reason: why }));
      }
      return true;
    };
    connection.onopen = (session) => {
      peer = { session, connection, closed: deferred() };
      resolve(peer);
    };
    connection.open();
  });
}

/** Says GOODBYE and resolves with the reason of the router's answer. */
function leave(peer) {
  if (peer.session.isOpen) peer.connection.close();
  return patiently(peer.closed.promise, 'the connection to close');
}

function deferred() {
  const result = {};
  result.promise = new Promise((resolve, reject) => Object.assign(result, { resolve, reject }));
  return result;
}

function patiently(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited too long for ${what}`)), PATIENCE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** The values that every peer must get exactly as they were sent. */
function values() {
  const text = fs.readFileSync(path.join(__dirname, '..', 'values.json'), 'utf8');
  return JSON.parse(text, (_, value) =>
    value && typeof value === 'object' && typeof value.$binary === 'string'
      ? Buffer.from(value.$binary, 'base64')
      : value,
  );
}

/** One form of every value: byte strings as Buffer, integers beyond 32 bits as numbers. */
function normal(value) {
  if (value instanceof Uint8Array) return Buffer.from(value);
  if (value instanceof ArrayBuffer) return Buffer.from(value);
  if (typeof value === 'bigint') return Number(value);
  if (Array.isArray(value)) return value.map(normal);
  if (value && typeof value === 'object') {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, normal(inner)]));
  }
  return value;
}

function same(one, other) {
  return util.isDeepStrictEqual(normal(one), normal(other));
}

function show(value) {
  return util.inspect(value, { depth: 6, breakLength: Infinity, maxArrayLength: 20, maxStringLength: 200 });
}

function hasBinary(value) {
  if (value instanceof Uint8Array) return true;
  return Boolean(value) && typeof value === 'object' && Object.values(value).some(hasBinary);
}

function print(line) {
  process.stdout.write(line + '\n');
}

module.exports = { autobahn, PATIENCE_MS, join, leave, deferred, patiently, values, same, show, hasBinary, print };
