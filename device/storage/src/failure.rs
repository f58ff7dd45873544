// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Why a storage has failed for good.

use std::io;
use std::sync::{Arc, OnceLock};

use tracing::error;

use crate::error::{ErrorKind, StorageError, with_causes};

/// Why a storage has failed for good, for people and for the process that takes it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageFailure {
    /// What happened, with its causes.
    pub reason: String,
    /// Of the errors of the operations that meet it.
    pub kind: ErrorKind,
}

/// Why a storage has failed for good. Each operation that meets it gets a copy.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Failure {
    what: String,
    kind: io::ErrorKind,
    source: Option<Arc<io::Error>>,
}

impl Failure {
    /// What happened, and what the kernel says, if it says anything.
    pub(crate) fn new(what: String, source: Option<io::Error>) -> Self {
        Self {
            what,
            kind: source
                .as_ref()
                .map_or(io::ErrorKind::Other, io::Error::kind),
            source: source.map(Arc::new),
        }
    }

    /// Notes in `failure` that a storage has failed for good, and logs it, unless it has failed
    /// before. Returns the first failure.
    pub(crate) fn note(self, failure: &OnceLock<Self>) -> &Self {
        failure.get_or_init(|| {
            error!(
                "{}: nothing can be written until the storage is opened anew",
                self.chain()
            );
            self
        })
    }

    /// What an operation returns that meets it.
    pub(crate) fn error(&self) -> StorageError {
        io::Error::new(self.kind, self.clone()).into()
    }

    /// With its causes.
    pub(crate) fn chain(&self) -> String {
        with_causes(self)
    }

    /// For others.
    pub(crate) fn report(&self) -> StorageFailure {
        StorageFailure {
            reason: self.chain(),
            kind: self.error().kind(),
        }
    }
}

/// That of a storage in another process, which this one takes over.
impl From<StorageFailure> for Failure {
    fn from(failure: StorageFailure) -> Self {
        Self {
            what: failure.reason,
            kind: match failure.kind {
                ErrorKind::NoSpace => io::ErrorKind::StorageFull,
                ErrorKind::OutOfRange | ErrorKind::Io => io::ErrorKind::Other,
            },
            source: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn ho15_it_says_what_the_kernel_said() {
        let eio = io::Error::from_raw_os_error(5);
        let failure = Failure::new("a disk is lost".into(), Some(eio));
        assert_eq!(
            failure.chain(),
            "a disk is lost: Input/output error (os error 5)"
        );
        assert_eq!(failure.error().kind(), ErrorKind::Io);
        let lost = Failure::new("lost".into(), None);
        assert_eq!(lost.chain(), "lost");
        assert_eq!(lost.error().kind(), ErrorKind::Io);
    }

    #[test]
    fn a_lack_of_space_stays_one() {
        for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
            let failure = Failure::new("full".into(), Some(errno.into()));
            assert_eq!(failure.error().kind(), ErrorKind::NoSpace);
            // In the next process as well.
            let next = Failure::from(failure.report());
            assert_eq!(next.error().kind(), ErrorKind::NoSpace);
            assert_eq!(next.report(), failure.report());
        }
    }
}
