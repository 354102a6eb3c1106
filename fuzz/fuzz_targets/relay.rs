//! Bytes from another node: hostile ones never panic, and what is accepted says the same when it is written again.

#![no_main]

use common::relay::{Content, Frame, Hello, Kind, LENGTH_BYTES, frame_bytes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = frame_bytes(bytes);
    if let Some(hello) = Hello::parse(bytes) {
        assert_eq!(Hello::parse(&hello.bytes()), Some(hello));
    }
    let Ok(frame) = Frame::check(bytes) else { return };
    if frame.kind == Kind::Publish {
        return;
    }
    let Frame { kind, realm, id, uri, extra, progress, serializer, payload, .. } = frame;
    let mut out = Vec::new();
    Content { kind, realm, id, uri, extra: &[extra], progress, serializer, payload }.put(&mut out);
    // Parts of what came may overlap, so what is written may be longer than what came, and too long.
    let Ok(length) = frame_bytes(&out) else { return };
    assert_eq!(length.map(|length| length + LENGTH_BYTES), Some(out.len()));
    let Ok(again) = Frame::check(&out[LENGTH_BYTES..]) else { return };
    assert_eq!((again.kind, again.realm, again.id, again.uri), (kind, realm, id, uri));
    assert_eq!((again.extra, again.progress), (extra, progress));
    assert_eq!((again.payload, again.serializer), (payload, serializer));
});
