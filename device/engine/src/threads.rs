// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How the engine and the transports start threads.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

type Started = Arc<dyn Fn(&'static str) + Send + Sync>;

/// Starts threads. Whoever runs the engine may have a function called first on each of them, for
/// example to set its priority or to restrict it.
#[derive(Clone, Default)]
pub struct Threads(Option<Started>);

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Threads").field(&self.0.is_some()).finish()
    }
}

impl Threads {
    /// Each thread calls `started` with its name before anything else. A thread in which this
    /// panics ends as one whose own function panics.
    pub fn with(started: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(started)))
    }

    /// Starts a thread.
    ///
    /// # Errors
    ///
    /// Where the system has no thread left.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &'static str,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let started = self.0.clone();
        Builder::new().name(name.to_owned()).spawn(move || {
            if let Some(started) = started {
                started(name);
            }
            run()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;

    use super::*;

    #[test]
    fn the_function_is_called_first_on_each_thread() {
        let calls = Arc::<Mutex<Vec<_>>>::default();
        let own = Arc::clone(&calls);
        let threads = Threads::with(move |name| {
            own.lock().unwrap().push((name, thread::current().id()));
        });
        for name in ["one", "two"] {
            let seen = Arc::clone(&calls);
            let thread = threads.spawn(name, move || {
                assert_eq!(thread::current().name(), Some(name));
                seen.lock().unwrap().last().copied()
            });
            let thread = thread.unwrap();
            let expected = Some((name, thread.thread().id()));
            assert_eq!(thread.join().unwrap(), expected);
        }
        assert_eq!(calls.lock().unwrap().len(), 2);
    }
}
