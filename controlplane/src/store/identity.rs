//! Who this store is: kept beside the objects, changed in their transactions. Pure.
//!
//! `"SBM" version u8 │ node [16] │ epoch u64 │ inode u64 │ versions reserved u64 │ checksum [16]`

use super::record::{Actor, Reader, RecordError, checksum, require};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The node and the epoch of its store.
    pub actor: Actor,
    /// The data file's number when the epoch began: a restored or copied store has another and gets a new epoch.
    pub inode: u64,
    /// Snapshot versions up to this one may have been used.
    pub versions_reserved: u64,
}

impl Identity {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.actor.node);
        for number in [self.actor.epoch, self.inode, self.versions_reserved] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let sum = checksum(&out);
        out.extend_from_slice(&sum);
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (body, sum) = bytes.split_last_chunk().ok_or(RecordError::Checksum)?;
        if checksum(body) != *sum {
            return Err(RecordError::Checksum);
        }
        let mut reader = Reader(body);
        if reader.array()? != MAGIC {
            return Err(RecordError::Version);
        }
        let actor = Actor { node: reader.array()?, epoch: reader.u64()? };
        let identity = Self { actor, inode: reader.u64()?, versions_reserved: reader.u64()? };
        require(reader.0.is_empty(), "bytes after the end")?;
        Ok(identity)
    }
}

const MAGIC: [u8; 4] = *b"SBM\x01";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_and_damage_is_found() {
        let actor = Actor { node: [3; 16], epoch: 4 };
        let identity = Identity { actor, inode: 5, versions_reserved: 6 };
        let bytes = identity.encode();
        assert_eq!(Identity::decode(&bytes), Ok(identity));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Identity::decode(&bad).is_err());
            assert!(Identity::decode(&bytes[..at]).is_err());
        }
    }
}
