//! A whole machine as the balancer of a bed: Debian with systemd and a kernel of its own, in QEMU
//! without KVM. It is told what to do over a serial port, so its network is free for what is
//! tested.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    bed::Bed,
    guest,
    machine::channel::{Channel, Message},
    process::Running,
};

mod channel;
pub mod disk;

/// Killed when dropped.
pub struct Machine {
    running: Running,
    channel: Channel,
    scripts: u32,
}

/// What a script did.
#[derive(Clone, Debug)]
pub struct Output {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A boot takes half a minute of a processor's time; two machines and their load share two.
const BOOT: Duration = Duration::from_secs(300);
/// For a script that has no time-out of its own.
const PATIENCE: Duration = Duration::from_secs(240);

/// What may take so long takes the machine's processor: it is asked for now and then.
const SLOW: Duration = Duration::from_secs(90);

impl Machine {
    /// Takes the place of the balancer in a bed with one link ([`crate::bed::Layout::SharedL2`]),
    /// with its addresses, and waits until it has booted. `linux` is the beginning of a kernel's
    /// version, `disk` a file system that it finds as /dev/vdb.
    pub fn boot(bed: &Bed, linux: &str, disk: &Path) -> Result<Self> {
        let cache = guest::cache()?;
        let (kernel, root) = (cache.join(format!("linux-{linux}")), cache.join("debian-12/root.ext4"));
        if !kernel.join("recipe").exists() || !root.exists() {
            bail!("{} lacks Linux {linux} or Debian: `cargo xtask test guest` makes them", cache.display());
        }
        bed.lb.ip("addr flush dev eth0\nlink set eth0 down")?;
        bed.switch.ip("tuntap add tap0 mode tap\nlink set tap0 master br0\nlink set tap0 up")?;

        let socket = bed.dir().join("commands");
        let mut qemu = bed.switch.command("qemu-system-x86_64");
        // Emulated, a string instruction goes byte by byte: without those the kernel copies by
        // words.
        qemu.args([
            "-accel",
            "tcg",
            "-cpu",
            "max,-erms,-fsrm",
            "-smp",
            "1",
            "-m",
            "3072",
            "-nodefaults",
            "-no-user-config",
        ]);
        qemu.args(["-display", "none", "-serial", "stdio", "-serial", "chardev:commands"]);
        qemu.args(["-chardev", &format!("socket,id=commands,path={},server=on,wait=off", socket.display())]);
        qemu.arg("-kernel").arg(kernel.join("vmlinuz")).arg("-initrd").arg(kernel.join("initrd"));
        // On a busy machine the virtual timer may come late for the kernel's check of it.
        let boot = "console=ttyS0 loglevel=5 panic=-1 no_timer_check net.ifnames=0 systemd.show_status=no";
        // What costs emulation much and changes nothing that is looked at here.
        let fast = "clearcpuid=rep_good mitigations=off init_on_alloc=0";
        qemu.args(["-append", &format!("{boot} {fast}")]);
        for (number, (file, mode)) in [(root.as_path(), "snapshot=on"), (disk, "readonly=on")].iter().enumerate() {
            let name = file.display();
            qemu.args(["-drive", &format!("if=none,id=disk{number},format=raw,file={name},{mode}")]);
            qemu.args(["-device", &format!("virtio-blk-pci,drive=disk{number}")]);
        }
        qemu.args(["-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no"]);
        // What a driver must be without for XDP: packets are as large as on a wire, with checksums
        // that are whole.
        let plain =
            "csum=off,guest_csum=off,gso=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,mrg_rxbuf=off";
        qemu.args(["-device", &format!("virtio-net-pci,netdev=net,mac=52:54:00:00:00:05,romfile=,{plain}")]);
        let running = Running::start(&format!("Linux {linux}"), &bed.dir().join("console.log"), &mut qemu)?;
        let channel = Channel::open(&socket)?;
        let mut machine = Self { running, channel, scripts: 0 };
        machine.wait_booted()?;
        Ok(machine)
    }

    /// Runs a script of bash, which must succeed; what it printed.
    pub fn run(&mut self, script: &str) -> Result<String> {
        let output = self.try_run(script, PATIENCE)?;
        if output.status != 0 {
            bail!(
                "`{script}` failed ({}) on {}:\n{}{}",
                output.status,
                self.running.name,
                output.stdout,
                output.stderr
            );
        }
        Ok(output.stdout)
    }

    /// Runs a script of bash, however it ends.
    pub fn try_run(&mut self, script: &str, patience: Duration) -> Result<Output> {
        self.scripts += 1;
        self.channel.send(self.scripts, script)?;
        let deadline = Instant::now() + patience;
        loop {
            match self.next(deadline).with_context(|| format!("`{script}` did not end within {patience:?}"))? {
                Message::Done { number, output } if number == self.scripts => return Ok(output),
                Message::Done { .. } => {}
                Message::Ready => bail!("it rebooted during `{script}`; its console:\n{}", self.running.log_tail()),
            }
        }
    }

    /// Runs the condition each second until it succeeds.
    pub fn wait_until(&mut self, condition: &str, patience: Duration) -> Result<String> {
        // Asking costs what is waited for a good part of the only processor.
        let pause = if patience < SLOW { 1 } else { 4 };
        let script = format!(
            "for _ in $(seq {}); do out=$( {{ {condition}\n}} 2>&1) && {{ printf '%s' \"$out\"; exit 0; }}; sleep \
            {pause}; done; printf '%s' \"$out\"; exit 1",
            patience.as_secs() / pause
        );
        // A condition takes its time as well.
        let output = self.try_run(&script, patience * 3)?;
        if output.status != 0 {
            bail!("`{condition}` does not hold within {patience:?}; at last:\n{}", output.stdout);
        }
        Ok(output.stdout)
    }

    /// Reboots as an administrator does, and waits until it is up again.
    pub fn reboot(&mut self) -> Result<()> {
        self.run("systemd-run --quiet --on-active=1 systemctl reboot")?;
        self.wait_booted()
    }

    fn wait_booted(&mut self) -> Result<()> {
        let deadline = Instant::now() + BOOT;
        loop {
            if let Message::Ready = self.next(deadline).with_context(|| format!("no boot within {BOOT:?}"))? {
                return Ok(());
            }
        }
    }

    fn next(&mut self, deadline: Instant) -> Result<Message> {
        loop {
            if let Some(message) = self.channel.next(Duration::from_secs(1))? {
                return Ok(message);
            }
            let ended = self.running.ended()?;
            if ended.is_some() || Instant::now() > deadline {
                let state = ended.map_or_else(|| "says nothing".to_owned(), |status| format!("ended ({status})"));
                bail!("{} {state}; its console:\n{}", self.running.name, self.running.log_tail());
            }
        }
    }
}

/// The document or file of this repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("can't copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
