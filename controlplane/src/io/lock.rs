//! Lock files: who may run on a data folder. The kernel gives a lock up when its holder dies, however it dies.

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

/// A held lock; given up on drop.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Held by the control plane of a data folder.
pub const CONTROL_LOCK: &str = "control.lock";
/// Where the admin endpoint listens, as text.
pub const ADMIN_FILE: &str = "admin.address";
/// Held by the data plane of a data folder.
pub const DATA_LOCK: &str = "data.lock";

impl Lock {
    /// Takes the lock and notes our pid in the file. `Err(WouldBlock)` names the holder.
    pub fn take(path: &Path) -> io::Result<Self> {
        let mut file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = (&file).take(PID_BYTES_MAX).read_to_string(&mut pid);
                let error = format!("{} is held by process {}", path.display(), pid.trim());
                return Err(io::Error::new(io::ErrorKind::WouldBlock, error));
            }
            Err(error) => return Err(error.into()),
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }
}

/// True when a living process holds the lock.
pub fn is_held(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    // A shared lock, so that two who only look do not see each other.
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// How much of a lock file is read as a pid.
const PID_BYTES_MAX: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once_and_freed_on_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CONTROL_LOCK);
        assert!(!is_held(&path).unwrap());
        let lock = Lock::take(&path).unwrap();
        assert!(is_held(&path).unwrap());
        let error = Lock::take(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(lock);
        assert!(!is_held(&path).unwrap());
        Lock::take(&path).unwrap();
    }
}
