//! Any bytes as requests, however they are cut.

#![no_main]

use common::transport::http::{self, Head, Kind, Method, Problem, Reader, answer};
use libfuzzer_sys::fuzz_target;

const BODY_BYTES_MAX: usize = 1_000;

/// All requests of a stream that arrives in pieces of so many bytes, and how it ends.
fn read(stream: &[u8], piece: usize) -> (Vec<(Head, Vec<u8>)>, Option<Problem>) {
    let mut reader = Reader::default();
    let (mut found, mut head) = (Vec::new(), None);
    for mut piece in stream.chunks(piece) {
        loop {
            let body = match &head {
                None => match reader.head(&mut piece) {
                    Ok(None) => break,
                    Ok(Some(next)) => {
                        if let Err(problem) = reader.expect(next.length, BODY_BYTES_MAX) {
                            return (found, Some(problem));
                        }
                        head = Some(next);
                        continue;
                    }
                    Err(problem) => return (found, Some(problem)),
                },
                Some(_) => reader.body(&mut piece),
            };
            match body {
                Ok(None) => break,
                Ok(Some(body)) => found.extend(head.take().map(|head| (head, body))),
                Err(problem) => return (found, Some(problem)),
            }
        }
        assert!(piece.is_empty(), "a piece is used up");
    }
    (found, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((piece, stream)) = data.split_first() else { return };
    let whole = read(stream, stream.len().max(1));
    assert_eq!(whole, read(stream, usize::from(*piece).max(1)));
    for (_, body) in &whole.0 {
        assert!(body.len() <= BODY_BYTES_MAX);
    }
    if http::is_request(stream) == Some(false) {
        // A longer method than any of ours is not looked past.
        let is_none = |(head, _): &(Head, _)| head.target.is_none() || head.method == Method::Other;
        assert!(whole.0.first().is_none_or(is_none));
    }
    let _ = http::parse_open(Kind::LongPoll, stream);
    let mut event = Vec::new();
    answer::event("wamp", stream, &mut event);
    assert_eq!(event.windows(2).filter(|pair| pair == b"\n\n").count(), 1, "an event ends once");
});
