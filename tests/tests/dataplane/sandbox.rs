//! A thread with a network namespace and a BPF file system of its own; both go with the thread, however the test ends.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

pub struct Sandbox {
    directory: tempfile::TempDir,
}

/// Runs `test` in a sandbox. Needs root, and says so.
pub fn sandbox(test: impl AsyncFnOnce(&Sandbox) + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
    let outcome = thread::spawn(move || {
        let directory = tempfile::tempdir().unwrap();
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        let sandbox = Sandbox { directory };
        sandbox.run("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(&sandbox));
        // So that its directory can be removed.
        nix::mount::umount2(sandbox.bpffs(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

impl Sandbox {
    /// The root of its BPF file system.
    pub fn bpffs(&self) -> &Path {
        self.directory.path()
    }

    pub fn pin_dir(&self) -> PathBuf {
        self.bpffs().join("weir")
    }

    /// Runs a command in the sandbox; gives what it printed.
    pub fn run(&self, command: &str) -> String {
        let mut words = command.split_whitespace();
        let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{command}: {stdout}{stderr}");
        stdout.into_owned()
    }

    /// A veth pair, both ends up and in the sandbox.
    pub fn veth(&self, one: &str, other: &str) {
        self.run(&format!("ip link add {one} type veth peer name {other}"));
        self.run(&format!("ip link set {one} up"));
        self.run(&format!("ip link set {other} up"));
    }
}
