//! A thread with a network namespace and a BPF file system of its own; both go with the thread,
//! however the test ends.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
};

use nix::{
    errno::Errno,
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
        match mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>) {
            // In a chroot the root is no mount.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => panic!("can't keep mounts to this test: {error}"),
        }
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

/// A process that keeps a network namespace; both end with it.
pub struct Host(Child);

impl Host {
    pub fn run(&self, sandbox: &Sandbox, command: &str) -> String {
        sandbox.run(&format!("nsenter -t {} -n {command}", self.0.id()))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
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

    /// Another network namespace, with one end of a veth pair in it, and its address there.
    pub fn host_behind(&self, interface: &str, address: &str) -> Host {
        let host = Host(Command::new("unshare").args(["-n", "sleep", "600"]).spawn().unwrap());
        let pid = host.0.id();
        while fs::read_link(format!("/proc/{pid}/ns/net")).unwrap()
            == fs::read_link("/proc/thread-self/ns/net").unwrap()
        {
            thread::sleep(std::time::Duration::from_millis(1));
        }
        self.run(&format!("ip link add {interface} type veth peer name far netns {pid}"));
        self.run(&format!("ip link set {interface} up"));
        host.run(self, &format!("ip addr add {address} dev far nodad"));
        host.run(self, "ip link set far up");
        host
    }

    /// A veth pair, both ends up and in the sandbox.
    pub fn veth(&self, one: &str, other: &str) {
        self.run(&format!("ip link add {one} type veth peer name {other}"));
        self.run(&format!("ip link set {one} up"));
        self.run(&format!("ip link set {other} up"));
    }
}
