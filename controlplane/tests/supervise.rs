//! The control plane as the keeper of a data plane, which here is a shell that notes its pid and sleeps.

mod support;

use controlplane::boot::{Boot, BootError, DataLaunch, run};
use controlplane::io::child::Stop;
use controlplane::io::lock::{DATA_LOCK, Lock};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::path::{Path, PathBuf};
use support::{Control, DataPlane, config, eventually};
use tokio::sync::watch;

struct Shell {
    notes: PathBuf,
}

impl Shell {
    fn new(dir: &Path) -> Self {
        Self { notes: dir.join("pids") }
    }

    fn launch(&self) -> DataLaunch {
        let script = format!("echo $$ >> '{}'; exec sleep 600", self.notes.display());
        DataLaunch { program: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()] }
    }

    /// The pids of all that were started, once there are at least `count`.
    fn pids(&self, count: usize) -> Vec<Pid> {
        eventually("a start", || {
            let text = std::fs::read_to_string(&self.notes).ok().filter(|text| text.ends_with('\n'))?;
            let pids: Vec<_> =
                text.lines().map(|line| Pid::from_raw(line.parse().unwrap()).unwrap()).collect();
            (pids.len() >= count).then_some(pids)
        })
    }
}

#[test]
fn a_data_plane_that_dies_is_replaced_and_the_last_one_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let shell = Shell::new(dir.path());
    let control = Control::start(config(dir.path()), Some(shell.launch()));
    // It counts as up once one has said hello.
    let (data, _) = DataPlane::serve(dir.path(), 5);
    for starts in 1..4 {
        let pids = shell.pids(starts);
        kill_process(pids[starts - 1], Signal::KILL).unwrap();
    }
    let last = shell.pids(4)[3];
    drop(data);
    control.stop().unwrap();
    assert_eq!(shell.pids(4).len(), 4);
    assert!(test_kill_process(last).is_err(), "it was stopped and waited for");
}

#[test]
fn a_running_data_plane_is_adopted_and_replaced_when_it_dies() {
    let dir = tempfile::tempdir().unwrap();
    let shell = Shell::new(dir.path());
    let lock = Lock::take(&dir.path().join(DATA_LOCK)).unwrap();
    let control = Control::start(config(dir.path()), Some(shell.launch()));
    let (data, _) = DataPlane::serve(dir.path(), 5);
    eventually("ready", || (control.status()["ready"] == true).then_some(()));
    assert!(!shell.notes.exists(), "none was started beside it");
    drop(data);
    drop(lock);
    shell.pids(1);
    control.stop().unwrap();
    assert_eq!(shell.pids(1).len(), 1);
}

#[test]
fn an_adopted_data_plane_is_drained_over_the_link() {
    let dir = tempfile::tempdir().unwrap();
    let shell = Shell::new(dir.path());
    let lock = Lock::take(&dir.path().join(DATA_LOCK)).unwrap();
    let control = Control::start(config(dir.path()), Some(shell.launch()));
    let (data, _) = DataPlane::serve(dir.path(), 5);
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| control.stop());
        assert_eq!(data.recv(), Some(common::link::Down::Drain));
        assert!(!stopping.is_finished(), "the data plane is waited for");
        drop((data, lock));
        stopping.join().unwrap().unwrap();
    });
    assert!(!shell.notes.exists());
}

#[test]
fn one_that_never_comes_up_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = vec!["-c".into(), "exit 78".into()];
    let launch = DataLaunch { program: "/bin/sh".into(), arguments };
    let (_stop, stop) = watch::channel(Stop::No);
    let end = run(Boot { config: config(dir.path()), data: Some(launch), stop });
    assert!(matches!(end, Err(BootError::GaveUp)), "{end:?}");
}
