//! Bytes from another node: hostile ones never panic, and what is accepted says the same when it is written again.

#![no_main]

use common::relay::{Frame, Hello, Kind, LENGTH_BYTES, frame_bytes, put_bare, put_call, put_error, put_result};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = frame_bytes(bytes);
    if let Some(hello) = Hello::parse(bytes) {
        assert_eq!(Hello::parse(&hello.bytes()), Some(hello));
    }
    let Ok(frame) = Frame::check(bytes) else { return };
    let mut out = Vec::new();
    let Frame { realm, id, uri, serializer, payload, .. } = frame;
    match frame.kind {
        Kind::Call => put_call(&mut out, realm, id, uri, serializer, payload),
        Kind::Result => put_result(&mut out, id, serializer, payload),
        Kind::Error => put_error(&mut out, id, uri, serializer, payload),
        Kind::Ping | Kind::Pong | Kind::PublishAck => put_bare(&mut out, frame.kind, id),
        Kind::Publish => return,
    }
    let length = frame_bytes(&out).expect("what is written is well formed").expect("and whole");
    assert_eq!(length + LENGTH_BYTES, out.len());
    let again = Frame::check(&out[LENGTH_BYTES..]).expect("what is written is well formed");
    assert_eq!((again.kind, again.id, again.uri), (frame.kind, id, uri));
    if !matches!(frame.kind, Kind::Ping | Kind::Pong | Kind::PublishAck) {
        assert_eq!((again.payload, again.serializer), (payload, serializer));
    }
});
