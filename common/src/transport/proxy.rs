//! The PROXY protocol, versions 1 and 2 (HAProxy, "The PROXY protocol", 2.1 and 2.2): what a proxy says of the connection
//! that it passes on, before anything else.
//!
//! ```text
//! 1   PROXY TCP4 192.0.2.1 198.51.100.1 40000 8080 CR LF
//! 2   12 octets of signature | version, command | family, transport | 16-bit length | addresses | further fields
//! ```
//! A receiver must know that a header comes: anybody can write one. It is never looked for where it is not configured.

use crate::limits::PROXY_BYTES_MAX;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whose connection it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// A client at this address.
    Client(IpAddr),
    /// The proxy's own, for example to see whether we live.
    Proxy,
    /// A client whose address is not known, or no IP address.
    Hidden,
}

/// Why a header was refused; the connection is just closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("the connection does not begin with a PROXY header")]
    Missing,
    #[error("the PROXY header is malformed")]
    Malformed,
    #[error("the PROXY header is longer than {PROXY_BYTES_MAX} bytes")]
    TooLarge,
}

const SIGNATURE_1: &[u8] = b"PROXY ";
/// Longest header of version 1, with its line end.
const HEADER_1_BYTES_MAX: usize = 107;

const SIGNATURE_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
const HEADER_2_BYTES: usize = SIGNATURE_2.len() + 4;

const _: () = assert!(HEADER_1_BYTES_MAX <= PROXY_BYTES_MAX);

/// Reads the header that `bytes` begins with, and its length. `Ok(None)`: not whole yet, and so far shorter than
/// [`PROXY_BYTES_MAX`].
pub fn parse(bytes: &[u8]) -> Result<Option<(Source, usize)>, ProxyError> {
    if begins_alike(bytes, SIGNATURE_1) {
        parse_1(bytes)
    } else if begins_alike(bytes, SIGNATURE_2) {
        parse_2(bytes)
    } else {
        Err(ProxyError::Missing)
    }
}

/// As far as both go.
fn begins_alike(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(byte, expected)| byte == expected)
}

fn parse_1(bytes: &[u8]) -> Result<Option<(Source, usize)>, ProxyError> {
    let within = &bytes[..bytes.len().min(HEADER_1_BYTES_MAX)];
    let Some(end) = memchr::memchr(b'\n', within) else {
        return if bytes.len() < HEADER_1_BYTES_MAX { Ok(None) } else { Err(ProxyError::Malformed) };
    };
    let line = within[..end].strip_suffix(b"\r").ok_or(ProxyError::Malformed)?;
    let line = str::from_utf8(line).map_err(|_| ProxyError::Malformed)?;
    let source = source_1(line).ok_or(ProxyError::Malformed)?;
    Ok(Some((source, end + 1)))
}

fn source_1(line: &str) -> Option<Source> {
    let mut words = line.strip_prefix("PROXY ")?.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        // What follows is to be ignored. The proxy does not know its client, so the client gets nothing for being near.
        return Some(Source::Hidden);
    }
    let (source, target, ports) = (words.next()?, words.next()?, [words.next()?, words.next()?]);
    if words.next().is_some() || !ports.into_iter().all(is_port) {
        return None;
    }
    match family {
        "TCP4" => {
            let _: Ipv4Addr = target.parse().ok()?;
            source.parse().ok().map(IpAddr::V4)
        }
        "TCP6" => {
            let _: Ipv6Addr = target.parse().ok()?;
            source.parse().ok().map(IpAddr::V6)
        }
        _ => None,
    }
    .map(Source::Client)
}

/// Decimal, without a sign or leading zeros.
fn is_port(text: &str) -> bool {
    let is_plain =
        text.bytes().all(|octet| octet.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    is_plain && text.parse::<u16>().is_ok()
}

fn parse_2(bytes: &[u8]) -> Result<Option<(Source, usize)>, ProxyError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_2_BYTES>() else { return Ok(None) };
    let [.., version_and_command, family, high, low] = *header;
    if version_and_command >> 4 != 2 {
        return Err(ProxyError::Malformed);
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if HEADER_2_BYTES + length > PROXY_BYTES_MAX {
        return Err(ProxyError::TooLarge);
    }
    let Some((addresses, _)) = rest.split_at_checked(length) else { return Ok(None) };
    let source = match version_and_command & 0x0f {
        0 => Source::Proxy,
        1 => source_2(family, addresses)?,
        _ => return Err(ProxyError::Malformed),
    };
    Ok(Some((source, HEADER_2_BYTES + length)))
}

/// `family`: address family and transport. The fields behind the addresses are passed over.
fn source_2(family: u8, addresses: &[u8]) -> Result<Source, ProxyError> {
    let shortest = match family {
        0x11 => 12,
        0x21 => 36,
        0x31 => 216,
        // Unspecified.
        0x00 => 0,
        // Datagrams come in no connection.
        _ => return Err(ProxyError::Malformed),
    };
    if addresses.len() < shortest {
        return Err(ProxyError::Malformed);
    }
    Ok(match family {
        0x11 => addresses
            .first_chunk::<4>()
            .map_or(Source::Hidden, |ip| Source::Client(Ipv4Addr::from(*ip).into())),
        0x21 => addresses
            .first_chunk::<16>()
            .map_or(Source::Hidden, |ip| Source::Client(Ipv6Addr::from(*ip).into())),
        _ => Source::Hidden,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client(ip: &str) -> Source {
        Source::Client(ip.parse().expect("an address"))
    }

    fn version_2(version_and_command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = (addresses.len() as u16).to_be_bytes();
        [SIGNATURE_2, &[version_and_command, family], &length, addresses].concat()
    }

    #[test]
    fn version_1_names_the_client() {
        for (line, source) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.1 40000 8080\r\n", client("192.0.2.1")),
            ("PROXY TCP6 2001:db8::1 ::1 0 65535\r\n", client("2001:db8::1")),
            ("PROXY UNKNOWN\r\n", Source::Hidden),
            ("PROXY UNKNOWN ffff::ffff ffff::ffff 65535 65535\r\n", Source::Hidden),
        ] {
            let bytes = format!("{line}GET / HTTP/1.1\r\n");
            assert_eq!(parse(bytes.as_bytes()), Ok(Some((source, line.len()))), "{line}");
            for end in 0..line.len() {
                assert_eq!(parse(&line.as_bytes()[..end]), Ok(None), "{end} bytes of {line}");
            }
        }
    }

    #[test]
    fn broken_lines_are_refused() {
        for line in [
            "PROXY TCP4 192.0.2.1 198.51.100.1 40000 8080\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 40000\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 40000 8080 9\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 40000 65536\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 040000 80\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 +1 80\r\n",
            "PROXY TCP4 192.0.2.256 198.51.100.1 1 80\r\n",
            "PROXY TCP4 2001:db8::1 ::1 1 80\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.1 1 80\r\n",
            "PROXY TCP4  192.0.2.1 198.51.100.1 1 80\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.1 1 80\r\n",
            "PROXY \r\n",
        ] {
            assert_eq!(parse(line.as_bytes()), Err(ProxyError::Malformed), "{line:?}");
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(HEADER_1_BYTES_MAX));
        assert_eq!(parse(&endless.as_bytes()[..HEADER_1_BYTES_MAX - 1]), Ok(None));
        assert_eq!(parse(&endless.as_bytes()[..HEADER_1_BYTES_MAX]), Err(ProxyError::Malformed));
    }

    #[test]
    fn version_2_names_the_client() {
        let four = [&[192, 0, 2, 1, 198, 51, 100, 1][..], &[0x9c, 0x40, 0x1f, 0x90]].concat();
        let mut six = [0; 36];
        six[..16].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().expect("an address").octets());
        let further = [&four[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        for (bytes, source) in [
            (version_2(0x21, 0x11, &four), client("192.0.2.1")),
            (version_2(0x21, 0x11, &further), client("192.0.2.1")),
            (version_2(0x21, 0x21, &six), client("2001:db8::1")),
            (version_2(0x21, 0x31, &[0; 216]), Source::Hidden),
            (version_2(0x21, 0x00, &[]), Source::Hidden),
            (version_2(0x20, 0x11, &four), Source::Proxy),
            (version_2(0x20, 0x00, &[]), Source::Proxy),
        ] {
            assert_eq!(parse(&[&bytes[..], b"rest"].concat()), Ok(Some((source, bytes.len()))));
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), Ok(None));
            }
        }
    }

    #[test]
    fn broken_headers_of_version_2_are_refused() {
        for (version_and_command, family, length) in [
            (0x11, 0x11, 12),
            (0x22, 0x11, 12),
            (0x21, 0x11, 11),
            (0x21, 0x21, 35),
            (0x21, 0x12, 12),
            (0x21, 0x31, 215),
        ] {
            let bytes = version_2(version_and_command, family, &vec![0; length]);
            assert_eq!(
                parse(&bytes),
                Err(ProxyError::Malformed),
                "{version_and_command:#x} {family:#x} {length}"
            );
        }
        let mut announced = version_2(0x21, 0x11, &[]);
        announced[14..].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(parse(&announced), Err(ProxyError::TooLarge), "before its bytes are waited for");
    }

    #[test]
    fn what_is_no_header_is_refused_at_once() {
        for bytes in
            [&b"GET /ws HTTP/1.1\r\n"[..], b"\x7f\xf1\0\0", b"P ", b"\r\n\r\n\0\r\nQUIT\r", b"proxy "]
        {
            assert_eq!(parse(bytes), Err(ProxyError::Missing), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_within_the_bound(bytes: Vec<u8>, version in 0usize..3) {
            let bytes = [[&b""[..], SIGNATURE_1, SIGNATURE_2][version], &bytes].concat();
            match parse(&bytes) {
                Ok(Some((_, length))) => prop_assert!(length <= bytes.len().min(PROXY_BYTES_MAX)),
                Ok(None) => prop_assert!(bytes.len() < PROXY_BYTES_MAX),
                Err(_) => {}
            }
        }
    }
}
