//! Answers, and the stream of server-sent events.

use super::{Head, Method, Problem};
use std::io::Write as _;

/// What of a request its answer depends on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manner {
    pub keep_alive: bool,
    /// HTTP/1.1.
    pub is_1_1: bool,
    /// Pages of this origin, sent for one of which the request was, may read the answer.
    pub origin: Option<Box<str>>,
    /// Also when it was sent with cookies of theirs, which are not looked at.
    pub credentials: bool,
}

impl Manner {
    /// For answers to what is no request.
    pub const CLOSING: Self = Self { keep_alive: false, is_1_1: true, origin: None, credentials: false };

    /// `is_admitted`: the origin, if there is one, is; `is_named`: by its name.
    pub fn of(head: &Head, is_admitted: bool, is_named: bool) -> Self {
        let origin = head.origin.clone().filter(|_| is_admitted);
        let credentials = origin.is_some() && is_named;
        Self { keep_alive: head.keep_alive, is_1_1: head.is_1_1, origin, credentials }
    }
}

/// Writing to a vector does not fail.
macro_rules! put {
    ($out:expr, $($part:tt)*) => {
        write!($out, $($part)*).expect("memory takes what is written")
    };
}

/// Appends a whole answer.
pub fn write(manner: &Manner, status: &str, media_type: &str, body: &[u8], out: &mut Vec<u8>) {
    begin(manner, status, out);
    if !body.is_empty() {
        put!(out, "Content-Type: {media_type}\r\n");
    }
    // An answer without content says no length (RFC 9110, 8.6).
    if !status.starts_with("204") {
        put!(out, "Content-Length: {}\r\n", body.len());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
}

/// Appends a refusal.
pub fn refuse(manner: &Manner, problem: Problem, out: &mut Vec<u8>) {
    let body = problem.body();
    begin(manner, problem.status(), out);
    put!(
        out,
        "{}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        problem.headers(),
        body.len()
    );
}

/// Appends the answer to a browser that asks what a page may do (the Fetch standard, 3.2.2).
pub fn preflight(manner: &Manner, wanted: Method, out: &mut Vec<u8>) {
    begin(manner, "204 No Content", out);
    let method = if wanted == Method::Get { "GET" } else { "POST" };
    put!(
        out,
        "Allow: {method}, OPTIONS\r\nAccess-Control-Allow-Methods: {method}\r\n\
         Access-Control-Allow-Headers: content-type\r\nAccess-Control-Max-Age: 86400\r\n\r\n"
    );
}

/// Appends the word that a client waits for before it sends a body.
pub fn go_on(out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
}

fn begin(manner: &Manner, status: &str, out: &mut Vec<u8>) {
    let connection = if manner.keep_alive { "keep-alive" } else { "close" };
    put!(
        out,
        "HTTP/1.1 {status}\r\nConnection: {connection}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nVary: Origin\r\n"
    );
    if let Some(origin) = &manner.origin {
        put!(out, "Access-Control-Allow-Origin: {origin}\r\n");
        if manner.credentials {
            out.extend_from_slice(b"Access-Control-Allow-Credentials: true\r\n");
        }
    }
}

/// Appends the head of an answer that is a stream of events. It ends with [`end_stream`], or, before HTTP/1.1, with the
/// connection.
pub fn begin_stream(manner: &Manner, out: &mut Vec<u8>) {
    begin(manner, "200 OK", out);
    // Proxies hold back what they think is a page.
    out.extend_from_slice(b"Content-Type: text/event-stream\r\nX-Accel-Buffering: no\r\n");
    if manner.is_1_1 {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a piece of such an answer. An empty one is none.
pub fn stream(manner: &Manner, bytes: &[u8], out: &mut Vec<u8>) {
    match manner.is_1_1 {
        _ if bytes.is_empty() => {}
        true => {
            put!(out, "{:x}\r\n", bytes.len());
            out.extend_from_slice(bytes);
            out.extend_from_slice(b"\r\n");
        }
        false => out.extend_from_slice(bytes),
    }
}

pub fn end_stream(manner: &Manner, out: &mut Vec<u8>) {
    if manner.is_1_1 {
        out.extend_from_slice(b"0\r\n\r\n");
    }
}

/// A line that says nothing, so that all on the way see that the stream lives.
pub const COMMENT: &[u8] = b":\n\n";

/// Appends an event. `data` may have several lines: between the tokens of JSON there may be line breaks.
pub fn event(name: &str, data: &[u8], out: &mut Vec<u8>) {
    put!(out, "event: {name}\n");
    let mut rest = data;
    loop {
        out.extend_from_slice(b"data: ");
        let end = memchr::memchr2(b'\r', b'\n', rest);
        out.extend_from_slice(&rest[..end.unwrap_or(rest.len())]);
        out.push(b'\n');
        match end {
            Some(end) => rest = &rest[end + 1..],
            None => break,
        }
    }
    out.push(b'\n');
}
