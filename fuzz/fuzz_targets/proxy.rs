//! A peer that sends anything where a PROXY header is expected.
#![no_main]

use common::limits::PROXY_BYTES_MAX;
use common::transport::proxy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match proxy::parse(bytes) {
        Ok(Some((source, header_bytes))) => {
            assert!(header_bytes <= bytes.len().min(PROXY_BYTES_MAX));
            let whole = &bytes[..header_bytes];
            assert_eq!(proxy::parse(whole), Ok(Some((source, header_bytes))), "what follows does not matter");
            for cut in [whole.len() - 1, whole.len() / 2, 0] {
                assert_eq!(proxy::parse(&whole[..cut]), Ok(None), "a part is waited for");
            }
        }
        Ok(None) => assert!(bytes.len() < PROXY_BYTES_MAX),
        Err(_) => {}
    }
});
