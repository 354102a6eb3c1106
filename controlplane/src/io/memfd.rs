//! Sealed memory files: bytes that nobody can change any more, passed on as a descriptor.

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

/// A sealed memory file with these bytes: it can neither be written, grown, shrunk nor unsealed.
pub fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create(c"signalbox-snapshot", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    let fd = OwnedFd::from(file);
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn sealed_bytes_can_be_read_but_not_changed() {
        let file = File::from(sealed(b"abc").unwrap());
        let mut bytes = [0; 3];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"abc");
        assert!(file.write_at(b"x", 0).is_err());
        assert!(file.set_len(2).is_err());
        assert!(file.set_len(9).is_err());
        assert!(fcntl_add_seals(&file, SealFlags::FUTURE_WRITE).is_err());
    }
}
