//! One message of each shape, by hand in all three formats.

use super::super::message::{self, code};
use super::super::*;
use super::hex;

/// One message of each type and shape: in JSON, MessagePack and CBOR, each as this crate writes it.
pub(super) const GOLDEN: &[(&str, &str, &str, &str)] = &[
    (
        "HELLO",
        r#"[1,"realm1",{"roles":{"caller":{}}}]"#,
        "93 01 a67265616c6d31 81a5726f6c657381a663616c6c657280",
        "83 01 667265616c6d31 a165726f6c6573a16663616c6c6572a0",
    ),
    (
        "WELCOME",
        r#"[2,9007199254740992,{"authid":""}]"#,
        "93 02 cf0020000000000000 81a6617574686964a0",
        "83 02 1b0020000000000000 a16661757468696460",
    ),
    (
        "ABORT",
        r#"[3,{},"wamp.error.x"]"#,
        "93 03 80 ac77616d702e6572726f722e78",
        "83 03 a0 6c77616d702e6572726f722e78",
    ),
    (
        "ABORT",
        r#"[3,{},"a.b",[1],{"k":-1}]"#,
        "95 03 80 a3612e62 9101 81a16bff",
        "85 03 a0 63612e62 8101 a1616b20",
    ),
    ("CHALLENGE", r#"[4,"ticket",{}]"#, "93 04 a67469636b6574 80", "83 04 667469636b6574 a0"),
    ("AUTHENTICATE", r#"[5,"secret",{}]"#, "93 05 a6736563726574 80", "83 05 66736563726574 a0"),
    ("GOODBYE", r#"[6,{},"a.b"]"#, "93 06 80 a3612e62", "83 06 a0 63612e62"),
    ("ERROR", r#"[8,48,7,{},"a.b"]"#, "95 08 30 07 80 a3612e62", "85 08 1830 07 a0 63612e62"),
    (
        "ERROR",
        r#"[8,68,7,{},"a.b",[],{"x":null}]"#,
        "97 08 44 07 80 a3612e62 90 81a178c0",
        "87 08 1844 07 a0 63612e62 80 a16178f6",
    ),
    ("PUBLISH", r#"[16,1,{},"a.b"]"#, "94 10 01 80 a3612e62", "84 10 01 a0 63612e62"),
    (
        "PUBLISH",
        r#"[16,300,{"acknowledge":true},"a.b",["hi",1.5]]"#,
        "95 10 cd012c 81ab61636b6e6f776c65646765c3 a3612e62 92a26869cb3ff8000000000000",
        "85 10 19012c a16b61636b6e6f776c65646765f5 63612e62 82626869fb3ff8000000000000",
    ),
    ("PUBLISHED", r#"[17,1,70000]"#, "93 11 01 ce00011170", "83 11 01 1a00011170"),
    (
        "SUBSCRIBE",
        r#"[32,1,{"match":"prefix"},"a."]"#,
        "94 20 01 81a56d61746368a6707265666978 a2612e",
        "84 1820 01 a1656d6174636866707265666978 62612e",
    ),
    ("SUBSCRIBED", r#"[33,1,2]"#, "93 21 01 02", "83 1821 01 02"),
    ("UNSUBSCRIBE", r#"[34,1,2]"#, "93 22 01 02", "83 1822 01 02"),
    ("UNSUBSCRIBED", r#"[35,1]"#, "92 23 01", "82 1823 01"),
    (
        "UNSUBSCRIBED",
        r#"[35,0,{"subscription":2}]"#,
        "93 23 00 81ac737562736372697074696f6e02",
        "83 1823 00 a16c737562736372697074696f6e02",
    ),
    ("EVENT", r#"[36,1,2,{}]"#, "94 24 01 02 80", "84 1824 01 02 a0"),
    (
        "EVENT",
        r#"[36,1,200,{"topic":"a"},["\u0000AQID"],{"k":[true,false]}]"#,
        "96 24 01 ccc8 81a5746f706963a161 91c403010203 81a16b92c3c2",
        "86 1824 01 18c8 a165746f7069636161 8143010203 a1616b82f5f4",
    ),
    ("CALL", r#"[48,1,{},"a.b",[]]"#, "95 30 01 80 a3612e62 90", "85 1830 01 a0 63612e62 80"),
    (
        "CANCEL",
        r#"[49,1,{"mode":"kill"}]"#,
        "93 31 01 81a46d6f6465a46b696c6c",
        "83 1831 01 a1646d6f6465646b696c6c",
    ),
    ("RESULT", r#"[50,1,{},["é\n"]]"#, "94 32 01 80 91a3c3a90a", "84 1832 01 a0 8163c3a90a"),
    ("REGISTER", r#"[64,1,{},"a.b"]"#, "94 40 01 80 a3612e62", "84 1840 01 a0 63612e62"),
    ("REGISTERED", r#"[65,1,2]"#, "93 41 01 02", "83 1841 01 02"),
    ("UNREGISTER", r#"[66,1,2]"#, "93 42 01 02", "83 1842 01 02"),
    ("UNREGISTERED", r#"[67,1]"#, "92 43 01", "82 1843 01"),
    ("UNREGISTERED", r#"[67,0,{}]"#, "93 43 00 80", "83 1843 00 a0"),
    (
        "INVOCATION",
        r#"[68,1,2,{},[-32,-33,-129,-32769,-2147483649]]"#,
        "95 44 01 02 80 95e0d0dfd1ff7fd2ffff7fffd3ffffffff7fffffff",
        "85 1844 01 02 a0 85381f3820388039 8000 3a80000000",
    ),
    ("INTERRUPT", r#"[69,1,{}]"#, "93 45 01 80", "83 1845 01 a0"),
    (
        "YIELD",
        r#"[70,1,{},[],{"n":18446744073709551615}]"#,
        "95 46 01 80 90 81a16ecfffffffffffffffff",
        "85 1846 01 a0 80 a1616e1bffffffffffffffff",
    ),
];

#[test]
fn every_message_reads_and_writes_as_its_golden_bytes_in_every_format() {
    for (name, json, msgpack, cbor) in GOLDEN {
        let encoded = [json.as_bytes().to_vec(), hex(msgpack), hex(cbor)];
        for from in Serializer::ALL {
            let bytes = &encoded[from.index()];
            let message = decode(from, bytes).unwrap_or_else(|error| panic!("{json} in {from:?}: {error}"));
            assert_eq!(message.name(), *name);
            for to in Serializer::ALL {
                let mut out = Vec::new();
                encode::message(to, &mut out, &message, from).unwrap();
                assert_eq!(out, encoded[to.index()], "{json} from {from:?} to {to:?}: {out:x?}");
            }
        }
    }
}

#[test]
fn every_type_code_has_a_golden_message() {
    let known: Vec<u64> = (0..400).filter(|code| !message::name(*code).is_empty()).collect();
    let golden: std::collections::BTreeSet<u64> =
        GOLDEN.iter().map(|row| decode(Serializer::Json, row.1.as_bytes()).unwrap().code()).collect();
    assert_eq!(known, golden.into_iter().collect::<Vec<_>>());
    assert_eq!(known.len(), 24);
    assert_eq!(known.last(), Some(&code::YIELD));
}
