//! `[resume]`: sessions that outlive their connection.

use super::ConfigError;
use super::reader::Source;
use std::time::Duration;

/// `[resume]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resume {
    /// How long a session waits for its client after its connection broke; zero: sessions end with their connections.
    pub window: Duration,
    /// Sessions of the node that wait; the connection of one more takes its session with it.
    pub sessions_max: u32,
    /// Bytes kept for one session that waits; beyond it the oldest events are dropped.
    pub buffer_max: u32,
}

impl Default for Resume {
    fn default() -> Self {
        Self { window: Duration::from_secs(60), sessions_max: 10_000, buffer_max: 256 << 10 }
    }
}

pub(super) fn read(source: &Source<'_>, default: Resume) -> Result<Resume, ConfigError> {
    let section = source.section("resume")?;
    Ok(Resume {
        window: section.time("window", default.window)?,
        sessions_max: section.u32("sessions_max", default.sessions_max)?,
        buffer_max: section.u32("buffer_max", default.buffer_max)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    #[test]
    fn every_key_of_it_is_read() {
        let text = "[resume]\nwindow = \"0s\"\nsessions_max = 7\nbuffer_max = \"1MiB\"";
        let config = Config::parse(text, Path::new("test.toml")).expect("a good configuration");
        let wanted = Resume { window: Duration::ZERO, sessions_max: 7, buffer_max: 1 << 20 };
        assert_eq!(config.resume, wanted);
    }
}
