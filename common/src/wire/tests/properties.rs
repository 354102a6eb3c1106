//! What holds for all values.

use super::super::*;
use super::{after, golden, hex, publish, same};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

/// Text that does not begin with U+0000, which JSON keeps for byte strings.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z_.0-9]{0,40}",
        any::<String>(),
        vec(
            prop_oneof![Just('\0'), Just('"'), Just('\\'), Just('\n'), Just('é'), Just('😀'), any::<char>()],
            0..20
        )
        .prop_map(String::from_iter),
    ]
    .prop_map(|text: String| if text.starts_with('\0') { format!("a{text}") } else { text })
}

fn integer() -> impl Strategy<Value = OwnedValue> {
    // Each bit width is as likely as any other, since the formats choose by width.
    (any::<u64>(), 0..64u32, any::<bool>()).prop_map(|(value, shift, negative)| {
        let value = value >> shift;
        if negative { OwnedValue::from(!((value >> 1) as i64)) } else { OwnedValue::UInt(value) }
    })
}

fn scalar() -> impl Strategy<Value = OwnedValue> {
    prop_oneof![
        Just(OwnedValue::Null),
        any::<bool>().prop_map(OwnedValue::Bool),
        integer(),
        any::<f64>().prop_map(OwnedValue::Float),
        proptest::num::f64::ANY.prop_map(OwnedValue::Float),
        (-1000i32..1000).prop_map(|value| OwnedValue::Float(value.into())),
        text().prop_map(OwnedValue::Str),
        vec(any::<u8>(), 0..300).prop_map(OwnedValue::Bin),
    ]
}

fn tree() -> impl Strategy<Value = OwnedValue> {
    scalar().prop_recursive(6, 200, 40, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..40).prop_map(OwnedValue::List),
            btree_map(text(), inner, 0..40)
                .prop_map(|entries| OwnedValue::Dict(entries.into_iter().collect())),
        ]
    })
}

fn serializer() -> impl Strategy<Value = Serializer> {
    prop_oneof![Just(Serializer::Json), Just(Serializer::MsgPack), Just(Serializer::Cbor)]
}

fn transcoded(from: Serializer, bytes: &[u8], to: Serializer) -> Vec<u8> {
    let mut out = Vec::new();
    transcode::value(from, bytes, to, &mut out).unwrap();
    out
}

proptest! {
    #[test]
    fn a_value_reads_back_as_it_was_written(value in tree(), serializer in serializer()) {
        let read = OwnedValue::decode(serializer, &value.to_bytes(serializer)).unwrap();
        prop_assert!(same(&read, &after(&value, serializer)), "{read:?}");
    }

    #[test]
    fn other_readers_read_what_is_written(value in tree()) {
        let json: serde_json::Value = serde_json::from_slice(&value.to_bytes(Serializer::Json)).unwrap();
        prop_assert!(is_json(&json, &value), "{json}");
        let msgpack = value.to_bytes(Serializer::MsgPack);
        let msgpack = rmpv::decode::read_value(&mut &msgpack[..]).unwrap();
        prop_assert!(is_msgpack(&msgpack, &value), "{msgpack}");
        let cbor = value.to_bytes(Serializer::Cbor);
        let cbor: ciborium::Value = ciborium::from_reader(&cbor[..]).unwrap();
        prop_assert!(is_cbor(&cbor, &value), "{cbor:?}");
    }

    #[test]
    fn transcoding_is_writing_what_was_read(value in tree(), from in serializer(), to in serializer()) {
        let bytes = value.to_bytes(from);
        prop_assert_eq!(transcoded(from, &bytes, to), after(&value, from).to_bytes(to));
    }

    #[test]
    fn a_journey_through_all_formats_changes_only_what_json_cannot_hold(
        value in tree(), first in serializer(), second in serializer(), third in serializer(),
    ) {
        let mut bytes = value.to_bytes(first);
        let mut at = first;
        let mut expected = after(&value, first);
        for next in [second, third, first] {
            bytes = transcoded(at, &bytes, next);
            at = next;
            expected = after(&expected, next);
        }
        prop_assert!(same(&OwnedValue::decode(at, &bytes).unwrap(), &expected));
    }

    #[test]
    fn a_message_keeps_its_parts_in_every_format(
        args in proptest::option::of(vec(tree(), 0..5).prop_map(OwnedValue::List)),
        kwargs in proptest::option::of(btree_map(text(), tree(), 0..5)),
        options in btree_map(text(), tree(), 0..5), uri in text(), request in 1..=crate::ids::ID_MAX,
        from in serializer(), to in serializer(),
    ) {
        let kwargs = kwargs.map(|entries| OwnedValue::Dict(entries.into_iter().collect()));
        let args_bytes = args.as_ref().map(|args| args.to_bytes(from));
        let kwargs_bytes = kwargs.as_ref().map(|kwargs| kwargs.to_bytes(from));
        let payload = Payload { args: args_bytes.as_deref(), kwargs: kwargs_bytes.as_deref() };
        let fields: Vec<(&str, encode::Field<'_>)> =
            options.iter().map(|(key, value)| (key.as_str(), encode::Field::Value(value))).collect();
        let mut first = Vec::new();
        encode::call(from, &mut first, request, &fields, &uri, payload);
        let message = decode(from, &first).unwrap();
        let mut second = Vec::new();
        encode::message(to, &mut second, &message, from).unwrap();
        let Message::Call { request: id, options: dict, procedure, payload } = decode(to, &second).unwrap() else {
            panic!("a CALL stays a CALL");
        };
        prop_assert_eq!(id, request);
        prop_assert_eq!(&procedure, &uri);
        let lossy = |value: &OwnedValue| after(&after(value, from), to);
        let options = OwnedValue::Dict(options.into_iter().collect());
        prop_assert_eq!(dict.is_empty(), options.as_dict().unwrap().is_empty());
        prop_assert!(same(&dict.to_owned(), &lossy(&options)));
        for (key, value) in options.as_dict().unwrap() {
            let value = lossy(value);
            match dict.get(key) {
                None => prop_assert!(value.is_null()),
                Some(read) => prop_assert!(same(&read.to_owned(), &value)),
            }
        }
        let read = payload.kwargs.map(|bytes| OwnedValue::decode(to, bytes).unwrap());
        prop_assert_eq!(read.is_some(), kwargs.is_some());
        prop_assert!(read.iter().zip(&kwargs).all(|(read, kwargs)| same(read, &lossy(kwargs))));
        let args = args.or(kwargs.map(|_| OwnedValue::List(Vec::new())));
        let read = payload.args.map(|bytes| OwnedValue::decode(to, bytes).unwrap());
        prop_assert_eq!(read.is_some(), args.is_some());
        prop_assert!(read.iter().zip(&args).all(|(read, args)| same(read, &lossy(args))));
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200), serializer in serializer()) {
        survives(serializer, &bytes);
        survives(serializer, &publish(serializer, &bytes));
    }

    #[test]
    fn damaged_messages_never_panic(
        index in any::<prop::sample::Index>(), damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        serializer in serializer(),
    ) {
        let messages: Vec<_> = golden(serializer).collect();
        let mut bytes = index.get(&messages).1.clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        survives(serializer, &bytes);
    }

    #[test]
    fn json_is_accepted_exactly_when_another_reader_accepts_it(text in "[\\[\\]{},:\"0-9.eE+\\-\\\\u truefalsn\t]{0,12}") {
        let theirs = serde_json::from_str::<serde_json::Value>(&text);
        let ours = OwnedValue::decode(Serializer::Json, text.as_bytes());
        let out_of_range = theirs.as_ref().is_err_and(|error| error.to_string().starts_with("number out of range"));
        prop_assert!(theirs.is_ok() == ours.is_ok() || out_of_range, "{theirs:?} {ours:?}");
    }
}

/// Reads hostile bytes in all ways; what is a message must be the same one after a journey through each format.
fn survives(serializer: Serializer, bytes: &[u8]) {
    let _ = OwnedValue::decode(serializer, bytes);
    for to in Serializer::ALL {
        let _ = transcode::value(serializer, bytes, to, &mut Vec::new());
    }
    let Ok(message) = decode(serializer, bytes) else { return };
    for to in Serializer::ALL {
        let mut there = Vec::new();
        match encode::message(to, &mut there, &message, serializer) {
            Err(error) => assert_eq!(error, WireError::Key),
            Ok(()) => {
                let arrived = decode(to, &there).unwrap();
                assert_eq!(arrived.code(), message.code());
                // What the journey there and back changed stays as it is from then on.
                let back = carried(&there, to, serializer);
                let again = carried(&carried(&back, serializer, to), to, serializer);
                assert_eq!(back, again, "{serializer:?} {bytes:x?} to {to:?}");
            }
        }
    }
}

fn carried(bytes: &[u8], from: Serializer, to: Serializer) -> Vec<u8> {
    let mut out = Vec::new();
    encode::message(to, &mut out, &decode(from, bytes).unwrap(), from).unwrap();
    out
}

fn is_json(theirs: &serde_json::Value, ours: &OwnedValue) -> bool {
    match ours {
        OwnedValue::Null => theirs.is_null(),
        OwnedValue::Bool(value) => theirs.as_bool() == Some(*value),
        OwnedValue::UInt(value) => theirs.as_u64() == Some(*value),
        OwnedValue::Int(value) => theirs.as_i64() == Some(*value),
        // Their default reading of floats may be off by the last bit.
        OwnedValue::Float(value) if value.is_finite() => {
            theirs.is_f64() && (theirs.as_f64().unwrap() - value).abs() <= value.abs() * 2e-15
        }
        OwnedValue::Float(_) => theirs.is_null(),
        OwnedValue::Str(value) => theirs.as_str() == Some(value),
        OwnedValue::Bin(value) => {
            let base64 = theirs.as_str().and_then(|text| text.strip_prefix('\0'));
            base64 == Some(&base64::Engine::encode(&base64::engine::general_purpose::STANDARD, value))
        }
        OwnedValue::List(value) => theirs.as_array().is_some_and(|theirs| {
            theirs.len() == value.len()
                && theirs.iter().zip(value).all(|(theirs, ours)| is_json(theirs, ours))
        }),
        OwnedValue::Dict(value) => theirs.as_object().is_some_and(|theirs| {
            theirs.len() == value.len()
                && value.iter().all(|(key, ours)| theirs.get(key).is_some_and(|theirs| is_json(theirs, ours)))
        }),
    }
}

fn is_msgpack(theirs: &rmpv::Value, ours: &OwnedValue) -> bool {
    match (theirs, ours) {
        (rmpv::Value::Nil, OwnedValue::Null) => true,
        (rmpv::Value::Boolean(theirs), OwnedValue::Bool(ours)) => theirs == ours,
        (rmpv::Value::Integer(theirs), OwnedValue::UInt(ours)) => theirs.as_u64() == Some(*ours),
        (rmpv::Value::Integer(theirs), OwnedValue::Int(ours)) => theirs.as_i64() == Some(*ours),
        (rmpv::Value::F64(theirs), OwnedValue::Float(ours)) => theirs.to_bits() == ours.to_bits(),
        (rmpv::Value::String(theirs), OwnedValue::Str(ours)) => theirs.as_str() == Some(ours),
        (rmpv::Value::Binary(theirs), OwnedValue::Bin(ours)) => theirs == ours,
        (rmpv::Value::Array(theirs), OwnedValue::List(ours)) => {
            theirs.len() == ours.len()
                && theirs.iter().zip(ours).all(|(theirs, ours)| is_msgpack(theirs, ours))
        }
        (rmpv::Value::Map(theirs), OwnedValue::Dict(ours)) => {
            let equal =
                |((key, theirs), (ours_key, ours)): (&(rmpv::Value, rmpv::Value), &(String, OwnedValue))| {
                    key.as_str() == Some(ours_key) && is_msgpack(theirs, ours)
                };
            theirs.len() == ours.len() && theirs.iter().zip(ours).all(equal)
        }
        _ => false,
    }
}

fn is_cbor(theirs: &ciborium::Value, ours: &OwnedValue) -> bool {
    use ciborium::Value;
    match (theirs, ours) {
        (Value::Null, OwnedValue::Null) => true,
        (Value::Bool(theirs), OwnedValue::Bool(ours)) => theirs == ours,
        (Value::Integer(theirs), OwnedValue::UInt(ours)) => i128::from(*theirs) == i128::from(*ours),
        (Value::Integer(theirs), OwnedValue::Int(ours)) => i128::from(*theirs) == i128::from(*ours),
        (Value::Float(theirs), OwnedValue::Float(ours)) => {
            theirs.to_bits() == ours.to_bits() || theirs.is_nan() && ours.is_nan()
        }
        (Value::Text(theirs), OwnedValue::Str(ours)) => theirs == ours,
        (Value::Bytes(theirs), OwnedValue::Bin(ours)) => theirs == ours,
        (Value::Array(theirs), OwnedValue::List(ours)) => {
            theirs.len() == ours.len() && theirs.iter().zip(ours).all(|(theirs, ours)| is_cbor(theirs, ours))
        }
        (Value::Map(theirs), OwnedValue::Dict(ours)) => {
            let equal = |((key, theirs), (ours_key, ours)): (&(Value, Value), &(String, OwnedValue))| {
                key.as_text() == Some(ours_key) && is_cbor(theirs, ours)
            };
            theirs.len() == ours.len() && theirs.iter().zip(ours).all(equal)
        }
        _ => false,
    }
}

#[test]
fn containers_of_every_size_get_the_right_header() {
    // Nested, so that inner and outer headers are widened together.
    for count in [0, 1, 15, 16, 23, 24, 255, 256, 65_535, 65_536] {
        let inner = OwnedValue::List(vec![OwnedValue::UInt(1); count]);
        let entries = (0..count.min(300)).map(|index| (format!("k{index}"), OwnedValue::Null)).collect();
        let value = OwnedValue::List(vec![inner, OwnedValue::Dict(entries), OwnedValue::List(Vec::new())]);
        let mut outer = vec![OwnedValue::Null; count.min(30)];
        outer.push(value);
        let value = OwnedValue::List(outer);
        for from in Serializer::ALL {
            for to in Serializer::ALL {
                assert_eq!(transcoded(from, &value.to_bytes(from), to), value.to_bytes(to), "{count}");
            }
        }
    }
}

/// CBOR and MessagePack forms this crate never writes, with what they are in JSON.
#[test]
fn forms_that_others_write_become_their_json() {
    let cbor = [
        ("9f0102ff", "[1,2]"),
        ("bf6161019f", ""),
        ("bf61610161629f03ffff", r#"{"a":1,"b":[3]}"#),
        ("7f657374726561646d696e67ff", r#""streaming""#),
        ("7fff", r#""""#),
        ("5f42010243030405ff", r#""\u0000AQIDBAU=""#),
        ("5fff", r#""\u0000""#),
        ("c074323031332d30332d32315432303a30343a30305a", r#""2013-03-21T20:04:00Z""#),
        ("c11a514b67b0", "1363896240"),
        ("c249010000000000000000", "1.8446744073709552e19"),
        ("c349010000000000000000", "-1.8446744073709552e19"),
        // Numbers in the middle of two floats become the even one; one further, the nearer.
        ("3b80000000000003ff", "-9.223372036854776e18"),
        ("3b8000000000000bff", "-9.22337203685478e18"),
        ("c34980000000000003ffff", "-2.3611832414348226e21"),
        ("c349800000000000040000", "-2.361183241434823e21"),
        ("c248ffffffffffffffff", "18446744073709551615"),
        ("c2420100", "256"),
        ("c240", "0"),
        ("c340", "-1"),
        ("c34100", "-1"),
        ("c3487fffffffffffffff", "-9223372036854775808"),
        ("3b7fffffffffffffff", "-9223372036854775808"),
        ("3bffffffffffffffff", "-1.8446744073709552e19"),
        ("1bffffffffffffffff", "18446744073709551615"),
        ("f90000", "0.0"),
        ("f98000", "-0.0"),
        ("f93c00", "1.0"),
        ("f97bff", "65504.0"),
        ("f90001", "5.960464477539063e-8"),
        ("f9c400", "-4.0"),
        ("f97c00", "null"),
        ("f97e00", "null"),
        ("fa47c35000", "100000.0"),
        ("fb3ff199999999999a", "1.1"),
        ("fb7ff0000000000000", "null"),
        ("f7", "null"),
        ("f0", "null"),
        ("f8ff", "null"),
        ("d81842f5f6", r#""\u00009fY=""#),
        ("a2010220f5", r#"{"1":2,"-1":true}"#),
        ("a1f401", r#"{"false":1}"#),
        ("a1c16161f4", r#"{"a":false}"#),
    ];
    let msgpack = [
        ("d40000", "null"),
        ("c70000", "null"),
        ("d401ff", r#""\u0000/w==""#),
        ("d6ff00000000", r#""\u0000AAAAAA==""#),
        ("c70305010203", r#""\u0000AQID""#),
        ("ca3dcccccd", "0.10000000149011612"),
        ("ca7fc00000", "null"),
        ("cb7ff0000000000000", "null"),
        ("d9026869", r#""hi""#),
        ("dd0000000101", "[1]"),
        ("df00000001a16101", r#"{"a":1}"#),
        ("cf0000000000000001", "1"),
        ("d3ffffffffffffffff", "-1"),
        ("d07f", "127"),
        ("8201c0d0ffc0", r#"{"1":null,"-1":null}"#),
    ];
    for (from, rows) in [(Serializer::Cbor, &cbor[..]), (Serializer::MsgPack, &msgpack[..])] {
        for (bytes, json) in rows {
            let mut out = Vec::new();
            let result = transcode::value(from, &hex(bytes), Serializer::Json, &mut out);
            if json.is_empty() {
                result.unwrap_err();
                continue;
            }
            result.unwrap_or_else(|error| panic!("{bytes}: {error}"));
            assert_eq!(std::str::from_utf8(&out).unwrap(), *json, "{bytes}");
            if let Ok(value) = OwnedValue::decode(from, &hex(bytes)) {
                let list = [&[if from == Serializer::Cbor { 0x81 } else { 0x91 }][..], &hex(bytes)].concat();
                let shallow = value::List::checked(from, &list).iter().next().unwrap();
                assert!(same(&shallow.to_owned(), &value), "{bytes}: {shallow:?} {value:?}");
            }
        }
    }
}

#[test]
fn keys_without_a_json_form_are_an_error_there_and_pass_elsewhere() {
    for key in ["cb3ff0000000000000", "c0", "c40161", "90", "80"] {
        let bytes = [&[0x81][..], &hex(key), &[1]].concat();
        let mut out = b"before".to_vec();
        assert_eq!(
            transcode::value(Serializer::MsgPack, &bytes, Serializer::Json, &mut out),
            Err(WireError::Key)
        );
        let payload = Payload { args: Some(&[0x90]), kwargs: Some(&bytes) };
        let mut out = b"before".to_vec();
        transcode::payload(Serializer::MsgPack, payload, Serializer::Json, &mut out).unwrap_err();
        assert_eq!(out, b"before");
        let cbor = transcoded(Serializer::MsgPack, &bytes, Serializer::Cbor);
        assert_eq!(transcoded(Serializer::Cbor, &cbor, Serializer::MsgPack), bytes, "{key}");
    }
}

#[test]
fn json_numbers_and_byte_strings_keep_their_kind() {
    let rows = [
        ("18446744073709551615", OwnedValue::UInt(u64::MAX)),
        ("-9223372036854775808", OwnedValue::Int(i64::MIN)),
        ("18446744073709551616", OwnedValue::Float(18_446_744_073_709_551_616.0)),
        ("-9223372036854775809", OwnedValue::Float(-9_223_372_036_854_775_809.0)),
        ("-0", OwnedValue::UInt(0)),
        ("1.0", OwnedValue::Float(1.0)),
        ("1e2", OwnedValue::Float(100.0)),
        (r#""\u0000aGk""#, OwnedValue::Bin(b"hi".to_vec())),
        (r#""\u0000aGk=""#, OwnedValue::Bin(b"hi".to_vec())),
        (r#""\u0000\/w==""#, OwnedValue::Bin(vec![0xff])),
        (r#""\u0000""#, OwnedValue::Bin(Vec::new())),
        (r#""\u0000not base64""#, OwnedValue::Str("\0not base64".to_owned())),
        (r#"{"\u0000aGk=":1}"#, OwnedValue::dict([("\0aGk=", 1u8)])),
    ];
    for (text, value) in rows {
        assert_eq!(OwnedValue::decode(Serializer::Json, text.as_bytes()), Ok(value), "{text}");
    }
}
