//! What enemies and careless clients send.

use super::super::*;
use super::{golden, hex, publish};
use crate::limits::DEPTH_MAX;

fn error(serializer: Serializer, bytes: &[u8]) -> WireError {
    match decode(serializer, bytes) {
        Ok(message) => panic!("{serializer:?} {bytes:x?} is {message:?}"),
        Err(error) => error,
    }
}

fn json_error(text: &str) -> String {
    error(Serializer::Json, text.as_bytes()).to_string()
}

#[test]
fn every_truncation_is_malformed() {
    for serializer in Serializer::ALL {
        for (name, bytes) in golden(serializer) {
            for len in 0..bytes.len() {
                let error = error(serializer, &bytes[..len]);
                assert!(
                    matches!(error, WireError::Malformed { .. }),
                    "{serializer:?} {name} at {len}: {error}"
                );
            }
        }
    }
}

#[test]
fn nothing_may_follow_a_message() {
    for serializer in Serializer::ALL {
        for (name, mut bytes) in golden(serializer) {
            bytes.push(b'0');
            let error = error(serializer, &bytes);
            assert!(matches!(error, WireError::Malformed { .. }), "{serializer:?} {name}: {error}");
        }
    }
}

#[test]
fn one_element_too_many_or_too_few_is_an_arity_error() {
    for (name, bytes) in golden(Serializer::Json) {
        let text = String::from_utf8(bytes).unwrap();
        let elements: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let message = decode(Serializer::Json, text.as_bytes()).unwrap();
        // Optional elements may be missing, so only the shortest form of a message can be too short.
        let shortest =
            message.payload().is_empty() && !text.starts_with("[35,0") && !text.starts_with("[67,0");
        for serializer in Serializer::ALL {
            let encoded = |count: usize| {
                let mut elements = elements.clone();
                elements.resize(count, serde_json::json!({}));
                let json = serde_json::to_vec(&elements).unwrap();
                let mut out = Vec::new();
                transcode::value(Serializer::Json, &json, serializer, &mut out).unwrap();
                out
            };
            if shortest {
                let error = error(serializer, &encoded(elements.len() - 1));
                assert!(matches!(error, WireError::Arity { .. }), "{serializer:?} {name}: {error}");
            }
            let error = error(serializer, &encoded(8));
            assert!(
                matches!(error, WireError::Arity { .. } | WireError::Field { .. }),
                "{serializer:?} {name}: {error}"
            );
        }
    }
    assert_eq!(json_error("[32,1,{}]"), "SUBSCRIBE must have 4 elements");
    assert_eq!(json_error(r#"[16,1,{},"a",[],{},1]"#), "PUBLISH must have 4 to 6 elements");
    assert_eq!(json_error("[35,1,{},1]"), "UNSUBSCRIBED must have 2 or 3 elements");
}

#[test]
fn what_is_no_message_is_told_apart_from_what_is_not_well_formed() {
    for text in ["{}", "1", "null", "[]", r#"["a"]"#, "[-1]", "[1.0]", "[true]", "[null]", r#""a""#] {
        let mut bytes = Vec::new();
        for serializer in Serializer::ALL {
            bytes.clear();
            transcode::value(Serializer::Json, text.as_bytes(), serializer, &mut bytes).unwrap();
            assert_eq!(error(serializer, &bytes), WireError::NotAMessage, "{serializer:?} {text}");
        }
    }
    assert_eq!(json_error("[7]"), "unknown message type 7");
    assert_eq!(json_error("[18446744073709551615,1]"), "unknown message type 18446744073709551615");
    assert_eq!(json_error("hello"), "not well-formed JSON at byte 0: an unexpected character");
    assert_eq!(json_error(""), "not well-formed JSON at byte 0: it ends too early");
}

#[test]
fn ids_are_integers_from_one_to_two_to_the_53rd() {
    let what = "SUBSCRIBE.Request must be an integer from 1 to 9007199254740992";
    for id in
        ["0", "-1", "9007199254740993", "1.0", "1e0", "true", "null", r#""1""#, "[]", "99999999999999999999"]
    {
        for serializer in Serializer::ALL {
            let text = format!(r#"[32,{id},{{}},"a"]"#);
            let mut bytes = Vec::new();
            transcode::value(Serializer::Json, text.as_bytes(), serializer, &mut bytes).unwrap();
            assert_eq!(error(serializer, &bytes).to_string(), what, "{serializer:?} {id}");
        }
    }
    let message = decode(Serializer::Json, br#"[32,9007199254740992,{},"a"]"#).unwrap();
    assert!(matches!(message, Message::Subscribe { request: crate::ids::ID_MAX, .. }));
    // Signed encodings of a positive number are integers as well.
    let bytes = hex("93 22 d300000000000000ff d17fff");
    let message = decode(Serializer::MsgPack, &bytes).unwrap();
    assert_eq!(message, Message::Unsubscribe { request: 255, subscription: 32_767 });
    assert_eq!(
        json_error("[34,1,0]"),
        "UNSUBSCRIBE.Subscription must be an integer from 1 to 9007199254740992"
    );
    assert_eq!(json_error("[35,-1]"), "UNSUBSCRIBED.Request must be an integer from 0 to 9007199254740992");
    assert_eq!(json_error(r#"[8,"x",1,{},"a"]"#), "ERROR.Type must be a non-negative integer");
}

#[test]
fn fields_of_another_kind_are_named() {
    assert_eq!(json_error("[1,2,{}]"), "HELLO.Realm must be a string");
    assert_eq!(json_error(r#"[1,"a",[]]"#), "HELLO.Details must be a dictionary with string keys");
    assert_eq!(json_error(r#"[48,1,{},"a",{}]"#), "CALL.Arguments must be a list");
    assert_eq!(
        json_error(r#"[48,1,{},"a",[],[]]"#),
        "CALL.ArgumentsKw must be a dictionary with string keys"
    );
    let keyed =
        [(Serializer::MsgPack, "94 30 01 81 01 02 a161"), (Serializer::Cbor, "84 1830 01 a1 01 02 6161")];
    for (serializer, bytes) in keyed {
        let error = error(serializer, &hex(bytes)).to_string();
        assert_eq!(error, "CALL.Options must be a dictionary with string keys");
    }
    let keyed = [
        (Serializer::MsgPack, "96 30 01 80 a161 90 81 c403616263 02"),
        (Serializer::Cbor, "86 1830 01 a0 6161 80 a1 43616263 02"),
        (Serializer::Cbor, "86 1830 01 a0 6161 80 bf 43616263 02 ff"),
    ];
    for (serializer, bytes) in keyed {
        let error = error(serializer, &hex(bytes)).to_string();
        assert_eq!(error, "CALL.ArgumentsKw must be a dictionary with string keys");
    }
}

#[test]
fn null_and_undefined_count_as_an_empty_dictionary_and_as_no_payload() {
    let empty = decode(Serializer::Json, br#"[16,1,{},"a"]"#).unwrap();
    assert_eq!(decode(Serializer::Json, br#" [ 16 , 1 , null , "a" , null , null ] "#).unwrap(), empty);
    assert_eq!(decode(Serializer::Json, b"[16,1,{ \t\r\n},\"a\"]").unwrap(), empty);
    let bytes = hex("94 10 01 80 a161");
    let empty = decode(Serializer::MsgPack, &bytes).unwrap();
    for bytes in ["96 10 01 c0 a161 c0 c0", "96 10 01 d40000 a161 d40000 d40000", "94 10 01 de0000 a161"] {
        assert_eq!(decode(Serializer::MsgPack, &hex(bytes)).unwrap(), empty);
    }
    let bytes = hex("84 10 01 a0 6161");
    let empty = decode(Serializer::Cbor, &bytes).unwrap();
    for bytes in [
        "86 10 01 f6 6161 f6 f6",
        "86 10 01 f7 6161 f7 f7",
        "9f 10 01 bfff 7f6161ff ff",
        "d9d9f7 84 10 01 a0 6161",
        "84 10 c1 01 c2c3 a0 c1 6161",
    ] {
        assert_eq!(decode(Serializer::Cbor, &hex(bytes)).unwrap(), empty, "{bytes}");
    }
}

#[test]
fn the_last_of_equal_keys_wins_and_null_is_absent() {
    let text = br#"{"a":1,"b":{"x":[1]},"a":2,"c":3,"c":null,"\u0061":"z","d":-5,"e":1.0}"#;
    for serializer in Serializer::ALL {
        let mut encoded = Vec::new();
        transcode::value(Serializer::Json, text, serializer, &mut encoded).unwrap();
        let mut message = Vec::new();
        let fields = [("ignored", encode::Field::Bool(true))];
        encode::call(
            serializer,
            &mut message,
            1,
            &fields,
            "a",
            Payload { args: None, kwargs: Some(&encoded) },
        );
        let Message::Call { payload, .. } = decode(serializer, &message).unwrap() else { panic!() };
        let dict = Dict::checked(serializer, payload.kwargs.unwrap());
        assert_eq!(dict.iter().count(), 8);
        assert_eq!(dict.get("a").unwrap().as_str(), Some("z"));
        assert_eq!(dict.get("c"), None);
        assert_eq!(dict.get("absent"), None);
        assert_eq!(dict.get("d"), Some(Value::Int(-5)));
        assert_eq!(dict.get("e"), Some(Value::Float(1.0)));
        let list = dict.get("b").unwrap().as_dict().unwrap().get("x").unwrap().as_list().unwrap();
        assert_eq!(list.iter().collect::<Vec<_>>(), [Value::UInt(1)]);
        assert_eq!(dict.to_owned().get("d").unwrap().as_i64(), Some(-5));
    }
}

/// A list, or a dictionary under an empty key, around the next one, `levels` deep.
fn nest(serializer: Serializer, dicts: bool, levels: usize) -> Vec<u8> {
    let (open, close) = match (serializer, dicts) {
        (Serializer::Json, false) => (&b"["[..], "]"),
        (Serializer::Json, true) => (&b"{\"\":"[..], "}"),
        (Serializer::MsgPack, false) => (&[0x91][..], ""),
        (Serializer::MsgPack, true) => (&[0x81, 0xa0][..], ""),
        (Serializer::Cbor, false) => (&[0x81][..], ""),
        (Serializer::Cbor, true) => (&[0xa1, 0x60][..], ""),
    };
    let mut bytes = open.repeat(levels);
    bytes.push(if serializer == Serializer::Json { b'1' } else { 1 });
    bytes.extend(close.repeat(levels).bytes());
    bytes
}

#[test]
fn nesting_has_a_limit() {
    for serializer in Serializer::ALL {
        for dicts in [false, true] {
            let wrap = |levels: usize| {
                let mut args = Vec::new();
                match serializer {
                    Serializer::Json => args.push(b'['),
                    Serializer::MsgPack => args.push(0x91),
                    Serializer::Cbor => args.push(0x81),
                }
                args.extend(nest(serializer, dicts, levels));
                if serializer == Serializer::Json {
                    args.push(b']');
                }
                publish(serializer, &args)
            };
            // The message and its arguments are two levels.
            let deepest = wrap(DEPTH_MAX - 2);
            let message = decode(serializer, &deepest).unwrap();
            for to in Serializer::ALL {
                encode::message(to, &mut Vec::new(), &message, serializer).unwrap();
            }
            let too_deep = WireError::TooDeep { depth_max: DEPTH_MAX };
            assert_eq!(error(serializer, &wrap(DEPTH_MAX - 1)), too_deep);
            assert_eq!(error(serializer, &wrap(1_000_000)), too_deep);
            let value = nest(serializer, dicts, DEPTH_MAX);
            assert!(OwnedValue::decode(serializer, &value).is_ok());
            for to in Serializer::ALL {
                transcode::value(serializer, &value, to, &mut Vec::new()).unwrap();
            }
            assert_eq!(
                OwnedValue::decode(serializer, &nest(serializer, dicts, DEPTH_MAX + 1)),
                Err(too_deep.clone())
            );
        }
    }
    // Tags are no levels, but a run of them has the same limit.
    let tagged = |tags: usize| [vec![0xc1; tags], vec![1]].concat();
    assert_eq!(OwnedValue::decode(Serializer::Cbor, &tagged(DEPTH_MAX)), Ok(OwnedValue::UInt(1)));
    let too_deep = WireError::TooDeep { depth_max: DEPTH_MAX };
    assert_eq!(OwnedValue::decode(Serializer::Cbor, &tagged(DEPTH_MAX + 1)), Err(too_deep.clone()));
    assert_eq!(error(Serializer::Cbor, &publish(Serializer::Cbor, &tagged(1_000_000))), too_deep);
}

#[test]
fn a_claim_larger_than_the_input_is_refused_where_it_is_read() {
    let claims = [
        (Serializer::MsgPack, ["dd ffffffff", "df ffffffff", "db ffffffff", "c6 ffffffff", "c9 ffffffff 01"]),
        (Serializer::MsgPack, ["dc ffff", "de ffff", "da ffff", "c5 ffff", "c8 ffff 01"]),
        (
            Serializer::Cbor,
            [
                "9b ffffffffffffffff",
                "bb ffffffffffffffff",
                "7b ffffffffffffffff",
                "5b ffffffffffffffff",
                "bb 8000000000000000",
            ],
        ),
        (
            Serializer::Cbor,
            ["9a ffffffff", "ba ffffffff", "7a ffffffff", "5f 5affffffff", "7f 7bfffffffffffffffd"],
        ),
    ];
    for (serializer, claims) in claims {
        for claim in claims {
            let mut bytes = hex(claim);
            assert!(OwnedValue::decode(serializer, &bytes).is_err(), "{claim}");
            bytes.extend([1; 64]);
            assert!(OwnedValue::decode(serializer, &bytes).is_err(), "{claim}");
            let error = error(serializer, &publish(serializer, &bytes));
            assert!(
                matches!(error, WireError::Malformed { .. } | WireError::Field { .. }),
                "{claim}: {error}"
            );
        }
    }
}

#[test]
fn text_is_utf8_everywhere() {
    let bad = [
        (Serializer::MsgPack, "93 01 a1ff 80"),
        (Serializer::MsgPack, "93 01 a161 81a1ffc0"),
        (Serializer::MsgPack, "95 10 01 80 a161 91a1ff"),
        (Serializer::MsgPack, "95 10 01 80 a161 9181a2c328c0"),
        (Serializer::Cbor, "83 01 61ff a0"),
        (Serializer::Cbor, "83 01 6161 a161fff6"),
        (Serializer::Cbor, "85 10 01 a0 6161 8161ff"),
        (Serializer::Cbor, "85 10 01 a0 6161 81a162c328f6"),
        // RFC 8949, 3.2.3: a character may not be spread over chunks.
        (Serializer::Cbor, "85 10 01 a0 6161 817f61c361a9ff"),
    ];
    for (serializer, bytes) in bad {
        let error = error(serializer, &hex(bytes)).to_string();
        assert!(error.ends_with("text is not UTF-8"), "{bytes}: {error}");
    }
    let error = error(Serializer::Json, b"[16,1,{},\"a\",[\"\xed\xa0\x80\"]]").to_string();
    assert!(error.ends_with("text is not UTF-8"), "{error}");
}

#[test]
fn json_is_read_as_strictly_as_another_reader_does() {
    let accepted = [
        "[]",
        "[ ]",
        "{}",
        "{ }",
        "[1,2]",
        "[\n1\t,\r2 ]",
        r#"{"a":1}"#,
        r#"{ "a" : 1 , "b" : [ ] }"#,
        "[0]",
        "[-0]",
        "[0.0]",
        "[1e5]",
        "[1E+5]",
        "[-1.5e-5]",
        r#"["\"\\\/\b\f\n\r\t"]"#,
        r#"["\u00e9\uD83D\uDE00"]"#,
        "[null,true,false]",
        "[\"\u{7f}\u{80}\"]",
        "[123456789012345678901234567890]",
        "[[],[{}],{\"\":{}}]",
        r#"["\u0000"]"#,
    ];
    let refused = [
        "",
        "[",
        "]",
        "{",
        "}",
        "[,]",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{,}",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":1,}"#,
        r#"{a:1}"#,
        r#"{1:1}"#,
        r#"{"a":1 "b":2}"#,
        "[01]",
        "[1.]",
        "[.5]",
        "[-]",
        "[+1]",
        "[1e]",
        "[1e+]",
        "[0x1]",
        "[1.e1]",
        "[- 1]",
        "[NaN]",
        "[Infinity]",
        "[nul]",
        "[nulll]",
        "[True]",
        r#"["\x"]"#,
        r#"["\u12"]"#,
        r#"["\u12g4"]"#,
        r#"["\ud800"]"#,
        r#"["\ud800\n"]"#,
        r#"["\ud800\u0041"]"#,
        r#"["\udc00"]"#,
        r#"["\ud800\ud800"]"#,
        "[\"\n\"]",
        "[\"\u{0}\"]",
        "[\"\u{1f}\"]",
        r#"["a]"#,
        r#"['a']"#,
        "[1]]",
        "[1}",
        r#"{"a":1]"#,
        "[[]",
        "\u{feff}[]",
        "[1]\u{a0}",
        "[\u{b}1]",
        "[//\n1]",
        r#"["\"]"#,
        r#"["\u+123"]"#,
        r#"["\ud83d\u"]"#,
        "[--1]",
        "[1-]",
        "[truefalse]",
        "[1true]",
    ];
    for text in accepted {
        assert!(serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text}");
        assert!(OwnedValue::decode(Serializer::Json, text.as_bytes()).is_ok(), "{text}");
    }
    for text in refused {
        assert!(serde_json::from_str::<serde_json::Value>(text).is_err(), "{text}");
        assert!(OwnedValue::decode(Serializer::Json, text.as_bytes()).is_err(), "{text}");
        if text.starts_with('[') {
            decode(Serializer::Json, &publish(Serializer::Json, text.as_bytes())).unwrap_err();
        }
    }
}

#[test]
fn a_special_character_is_found_at_every_place_of_a_string() {
    for len in 0..100 {
        for at in 0..len {
            for special in ['"', '\\', '\n', '\u{0}', '\u{1f}'] {
                let mut text = vec!['é'; len];
                text[at] = special;
                let value = OwnedValue::list([text.into_iter().collect::<String>()]);
                let bytes = value.to_bytes(Serializer::Json);
                let text: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                assert_eq!(text[0].as_str(), value.as_list().unwrap()[0].as_str());
                if special != '\u{0}' || at > 0 {
                    assert_eq!(OwnedValue::decode(Serializer::Json, &bytes), Ok(value));
                }
                let mut raw = format!("[\"{}\"]", "a".repeat(len)).into_bytes();
                raw[2 + at] = special as u8;
                assert!(OwnedValue::decode(Serializer::Json, &raw).is_err());
            }
        }
    }
}

#[test]
fn what_cbor_reserves_is_malformed() {
    for bytes in [
        "1c",
        "1d",
        "1e",
        "1f",
        "3f",
        "5c",
        "7d",
        "9e",
        "bc",
        "dc",
        "df",
        "fc",
        "fd",
        "fe",
        "ff",
        "f800",
        "f81f",
        "f8",
        "81ff",
        "a1ff01",
        "bf01ff",
        "9fff00",
        "5f6161ff",
        "7f4161ff",
        "5f5f4161ffff",
        "7fff00",
        "9f",
        "bf",
        "5f",
        "7f",
        "c1",
        "c1ff",
        "9fc1ff",
        "5fc14161ff",
        "d8",
        "fb00",
    ] {
        assert!(OwnedValue::decode(Serializer::Cbor, &hex(bytes)).is_err(), "{bytes}");
        let args = [&[0x81][..], &hex(bytes)].concat();
        error(Serializer::Cbor, &publish(Serializer::Cbor, &args));
    }
    assert!(OwnedValue::decode(Serializer::MsgPack, &[0xc1]).is_err());
    error(Serializer::MsgPack, &publish(Serializer::MsgPack, &[0x91, 0xc1]));
}

#[test]
fn a_message_of_a_million_empty_lists_is_checked_and_transcoded() {
    let value = OwnedValue::List(vec![OwnedValue::List(Vec::new()); 1_000_000]);
    for from in Serializer::ALL {
        let message = publish(from, &value.to_bytes(from));
        let message = decode(from, &message).unwrap();
        for to in Serializer::ALL {
            let mut out = Vec::new();
            encode::message(to, &mut out, &message, from).unwrap();
            let Message::Publish { payload, .. } = decode(to, &out).unwrap() else { panic!() };
            assert_eq!(OwnedValue::decode(to, payload.args.unwrap()).unwrap(), value);
        }
    }
}
