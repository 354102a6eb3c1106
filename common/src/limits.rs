//! Bounds that are part of the design rather than of the configuration, with the relations between them.

/// Longest URI (realm, topic, procedure, error) in bytes.
pub const URI_BYTES_MAX: usize = 1_024;
/// Most components of a URI.
pub const URI_COMPONENTS_MAX: usize = 128;
/// Deepest nesting of lists and dictionaries in a message.
pub const DEPTH_MAX: usize = 64;
/// Largest message body the transports can carry: RawSocket's 2^24.
pub const MESSAGE_BYTES_MAX: usize = 1 << 24;
/// Largest message accepted before a session is established.
pub const LOGIN_MESSAGE_BYTES_MAX: usize = 4_096;
/// Largest HTTP upgrade request head.
pub const UPGRADE_BYTES_MAX: usize = 8_192;
/// Most headers of an HTTP upgrade request.
pub const UPGRADE_HEADERS_MAX: usize = 64;
/// Most fragments of one WebSocket message, whatever their length.
pub const FRAGMENTS_MAX: u32 = 1_024;
/// A message may have one more fragment for each so many bytes of it.
pub const FRAGMENT_BYTES: u32 = 64;
/// Longest payload of a WebSocket control frame (RFC 6455, 5.5).
pub const CONTROL_FRAME_BYTES_MAX: usize = 125;
/// Shortest WebSocket message that is compressed before it is sent.
pub const DEFLATE_BYTES_MIN: usize = 64;
/// Longest PROXY header: its addresses, and room for fields that are passed over.
pub const PROXY_BYTES_MAX: usize = 1_024;
/// Largest RawSocket PING accepted and echoed.
pub const RAW_PING_BYTES_MAX: usize = 4_096;
/// Most receivers that the lists of one PUBLISH may name, all lists together.
pub const AUDIENCE_ENTRIES_MAX: usize = 2_048;
/// Most bytes that these lists may take, packed.
pub const AUDIENCE_BYTES_MAX: usize = 24 * 1_024;
/// Most bytes of the retained events of one topic, packed: with its topic they fit a frame of the link.
pub const RETAINED_BYTES_MAX: usize = 60 * 1_024;
/// Largest frame on the link between the planes.
pub const LINK_FRAME_BYTES_MAX: usize = 64 * 1_024;

const _: () = assert!(URI_COMPONENTS_MAX <= URI_BYTES_MAX);
const _: () = assert!(RETAINED_BYTES_MAX + URI_BYTES_MAX + 1_024 <= LINK_FRAME_BYTES_MAX);
const _: () = assert!(LOGIN_MESSAGE_BYTES_MAX < MESSAGE_BYTES_MAX);
const _: () = assert!(DEPTH_MAX <= 64, "the JSON checker keeps one bit a level");
