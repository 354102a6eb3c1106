//! An HTTP peer that sends anything, in both roles.
#![no_main]

use common::limits::UPGRADE_BYTES_MAX;
use common::transport::upgrade;
use common::wire::Serializer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|head: &[u8]| {
    match upgrade::parse_request(head, "/ws") {
        Ok(Some(found)) => {
            assert!(found.head_bytes <= head.len().min(UPGRADE_BYTES_MAX));
            let whole = &head[..found.head_bytes];
            assert!(whole.ends_with(b"\r\n\r\n"));
            assert_eq!(upgrade::parse_request(whole, "/ws"), Ok(Some(found)), "what follows does not matter");
            for cut in [whole.len() - 1, whole.len() / 2, whole.len() / 3] {
                assert_eq!(upgrade::parse_request(&whole[..cut], "/ws"), Ok(None), "a part is waited for");
            }
        }
        Ok(None) => assert!(head.len() < UPGRADE_BYTES_MAX),
        Err(error) => {
            let mut answer = Vec::new();
            upgrade::write_refusal(error, &mut answer);
            assert!(upgrade::parse_answer(&answer, Serializer::Json, [0; 16]).is_err());
        }
    }
    if let Ok(Some(head_bytes)) = upgrade::parse_answer(head, Serializer::Json, [0; 16]) {
        assert!(head_bytes <= head.len());
    }
});
