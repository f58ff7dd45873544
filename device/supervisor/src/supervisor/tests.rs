// SPDX-License-Identifier: Apache-2.0 OR MIT

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::*;

/// Reads what a worker starts with.
const READ_START: &str = "dd bs=64 count=1 >/dev/null 2>&1; ";

/// Says that the worker was asked to end.
const ASKED_TO_END: &str = "printf E >&0; ";

/// A supervisor that has served before, whose workers run the commands of `script`.
fn supervisor(script: &str, notices: &mut Vec<Notice>) -> Supervisor<impl FnMut(Notice)> {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
    let script = format!("{READ_START}{script}");
    Supervisor {
        listener: Some(listener),
        control: None,
        signals: Signals {
            end: File::open("/dev/null").unwrap().into(),
            upgrade: File::open("/dev/null").unwrap().into(),
        },
        options: Options {
            arguments: vec!["-c".into(), script.into()],
            keep_running: true,
        },
        program: Program::of(PathBuf::from("/bin/sh")).unwrap(),
        former: None,
        kept: Vec::new(),
        restarts: Restarts::default(),
        is_ready: true,
        notify: |notice| notices.push(notice),
    }
}

/// A connection whose worker has ended, or is about to.
fn serving<N: FnMut(Notice)>(supervisor: &mut Supervisor<N>) -> Serving {
    let mut serving = Serving {
        runs: Runs::new().unwrap(),
        worker: None,
        session: None,
        start_at: Instant::now(),
    };
    supervisor.start_worker(&mut serving).unwrap();
    let (monitor, _) = UnixStream::pair().unwrap();
    serving.session = Some(Session::new(Channel::new(monitor).unwrap()));
    serving
}

/// How a connection ends, and the notices meanwhile.
fn end(script: &str, is_broken: bool) -> (Result<Ended, Failure>, Vec<Notice>) {
    let mut notices = Vec::new();
    let mut supervisor = supervisor(script, &mut notices);
    let serving = serving(&mut supervisor);
    let ended = match is_broken {
        true => supervisor.give_up(io::Error::other("broken"), serving),
        false => supervisor.finish(Ended::Hangup, serving),
    };
    drop(supervisor);
    (ended, notices)
}

#[test]
fn a_worker_is_asked_to_end_while_the_connection_ends() {
    for is_broken in [false, true] {
        let (ended, notices) = end(ASKED_TO_END, is_broken);
        assert!(matches!(ended, Ok(Ended::Asked)), "{ended:?}");
        assert_eq!(notices, [Notice::Stopping]);
        // The device has failed, and so no other connection is better.
        let (ended, _) = end(&format!("{ASKED_TO_END}exit 1"), is_broken);
        assert!(matches!(ended, Err(Failure::Device(_))), "{ended:?}");
    }
}

#[test]
fn another_connection_follows_one_that_has_ended() {
    let (ended, notices) = end("", false);
    assert!(matches!(ended, Ok(Ended::Hangup)), "{ended:?}");
    assert_eq!(notices, []);
    let (ended, _) = end("exit 1", false);
    assert!(matches!(ended, Err(Failure::Connection(_))), "{ended:?}");
    for script in ["", "exit 1"] {
        let (ended, notices) = end(script, true);
        let Err(Failure::Connection(error)) = ended else {
            panic!("{ended:?}");
        };
        assert_eq!(error.to_string(), "broken");
        assert_eq!(notices, []);
    }
}
