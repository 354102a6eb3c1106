// What Autobahn|JS needs of a browser for its long-poll transport: XMLHttpRequest, over node's fetch.

'use strict';

/** Requests to send wait for each other, so that they arrive in order. */
let sending = Promise.resolve();

class XMLHttpRequest {
  open(method, url) {
    Object.assign(this, { method, url, headers: {}, readyState: 1 });
  }

  setRequestHeader(name, value) {
    this.headers[name] = value;
  }

  send(body) {
    const signal = this.timeout > 0 ? AbortSignal.timeout(this.timeout) : undefined;
    const ask = () =>
      fetch(this.url, { method: this.method, headers: this.headers, body: body || undefined, signal }).then(
        async (answer) => this.end(answer.status, await answer.text()),
        (error) => this.end(0, String(error)),
      );
    if (this.url.endsWith('/send')) sending = sending.then(ask);
    else ask();
  }

  end(status, text) {
    Object.assign(this, { readyState: 4, status, statusText: text, responseText: text });
    this.onreadystatechange();
  }
}

globalThis.XMLHttpRequest = XMLHttpRequest;
