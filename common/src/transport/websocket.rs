//! WebSocket frames (RFC 6455, 5).
