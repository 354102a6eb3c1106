//! Asks a node's admin endpoint for the pid of its data plane.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("cannot ask http://{admin}/status: {source}")]
    Io { admin: String, source: io::Error },
    #[error("http://{admin}/status answered {line}")]
    Refused { admin: String, line: String },
    #[error("http://{admin}/status does not name the data plane's pid")]
    NoPid { admin: String },
}

/// The pid in `http://admin/status`.
///
/// # Errors
/// When there is no answer within two seconds, or none with a pid.
pub fn data_plane_pid(admin: &str) -> Result<u32, StatusError> {
    let answer = get(admin).map_err(|source| StatusError::Io { admin: admin.into(), source })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let line = head.lines().next().unwrap_or_default();
    if !line.contains(" 200") {
        return Err(StatusError::Refused { admin: admin.into(), line: line.into() });
    }
    pid_in(body).ok_or_else(|| StatusError::NoPid { admin: admin.into() })
}

fn get(admin: &str) -> io::Result<String> {
    let address = admin.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&address, TIME_OUT)?;
    stream.set_read_timeout(Some(TIME_OUT))?;
    stream.set_write_timeout(Some(TIME_OUT))?;
    // HTTP/1.0: the answer is neither chunked nor kept open.
    stream.write_all(format!("GET /status HTTP/1.0\r\nHost: {admin}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn pid_in(body: &str) -> Option<u32> {
    let status: serde_json::Value = serde_json::from_str(body).ok()?;
    let pid = status.pointer(PID_POINTER)?.as_u64()?;
    u32::try_from(pid).ok()
}

const PID_POINTER: &str = "/data_plane/pid";
const TIME_OUT: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Serves one answer on a port of its own.
    fn serve(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            // To its end: closing a connection with unread bytes resets it, and the answer is lost.
            while !request.ends_with(b"\r\n\r\n") {
                let mut octet = [0];
                stream.read_exact(&mut octet).unwrap();
                request.extend(octet);
            }
            assert!(request.starts_with(b"GET /status "));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        admin
    }

    #[test]
    fn the_pid_is_found_in_the_status() {
        let admin = serve("HTTP/1.0 200 OK\r\n\r\n{\"data_plane\": {\"pid\": 4711}}");
        assert_eq!(data_plane_pid(&admin).unwrap(), 4_711);
    }

    #[test]
    fn other_answers_say_what_is_wrong() {
        let admin = serve("HTTP/1.0 404 Not Found\r\n\r\n");
        assert!(data_plane_pid(&admin).unwrap_err().to_string().ends_with("answered HTTP/1.0 404 Not Found"));
        let admin = serve("HTTP/1.0 200 OK\r\n\r\n{\"data_plane\": null}");
        assert!(matches!(data_plane_pid(&admin), Err(StatusError::NoPid { .. })));
    }
}
