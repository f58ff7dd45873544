// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Why a storage has failed for good.

use std::io;
use std::sync::{Arc, OnceLock};

use tracing::error;

use crate::error::StorageError;
use crate::error::with_causes;

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
    pub(crate) fn note(failure: &OnceLock<Self>, what: String, source: Option<io::Error>) -> &Self {
        failure.get_or_init(|| {
            let failure = Self::new(what, source);
            error!(
                "{}: nothing can be written until the storage is opened anew",
                failure.chain()
            );
            failure
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
        }
    }
}
