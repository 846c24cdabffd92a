//! A server with a kernel of its own, for what this machine's kernel may lack: tunnels that end at
//! a backend. QEMU without KVM, Debian's kernel (`cargo xtask setup` unpacks both), and an archive
//! of the machine's own programs instead of a disk.

use std::{
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    bed::{Bed, VIPS, server_v4, server_v6},
    guest::archive::Archive,
    http,
    netns::Netns,
    process::{Running, wait_for},
    servers,
};

mod archive;

/// Where a guest stands, which says its addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// On the servers' network, beside the balancer.
    Switch,
    /// On a network of its own behind the router: the balancer's tunnel is routed.
    BehindRouter,
}

/// A web server, and on [`UPLOAD_PORTS`] one that answers whatever it is sent with its SHA-256; it
/// holds the VIPs and takes packets for them out of any tunnel that ends at its addresses. Killed
/// when dropped.
pub struct Guest {
    pub name: String,
    pub v4: IpAddr,
    pub v6: IpAddr,
    running: Running,
}

/// As many as there are guests, so that a service can have each for itself.
pub const UPLOAD_PORTS: [u16; 2] = [9001, 9002];

/// Its kernel boots in three seconds of one processor's time.
const PATIENCE: Duration = Duration::from_secs(60);

impl Guest {
    /// Boots it; see [`Guest::wait_ready`].
    pub fn start(bed: &Bed, number: u16, place: Place) -> Result<Self> {
        let name = format!("s{number}");
        let (v4, v6) = addresses(number, place);
        let tap = format!("tap{number}");
        let netns = plug(bed, &tap, place)?;
        let parts = parts()?;
        let disk = bed.dir().join(format!("{name}.cpio"));
        let archive = archive(&parts, &name, &init(v4, v6, place))?;
        fs::write(&disk, archive).with_context(|| format!("can't write {}", disk.display()))?;

        let mut qemu = netns.command("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-cpu", "max", "-m", "128", "-nodefaults", "-no-user-config", "-no-reboot"]);
        qemu.args(["-display", "none", "-serial", "stdio"]);
        qemu.arg("-kernel").arg(parts.join("vmlinuz")).arg("-initrd").arg(&disk);
        // On a busy machine the virtual timer may come late for the kernel's check of it.
        qemu.args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"]);
        qemu.args(["-netdev", &format!("tap,id=net,ifname={tap},script=no,downscript=no")]);
        // Packets are as large as on a wire, with checksums that are whole.
        let mac = format!("52:54:00:00:00:{number:02x}");
        qemu.args(["-device", &format!("virtio-net-pci,netdev=net,mac={mac},romfile=,csum=off,guest_csum=off")]);
        let running =
            Running::start(&format!("guest {name}"), &bed.dir().join(format!("{name}-console.log")), &mut qemu)?;
        Ok(Self { name, v4, v6, running })
    }

    /// Its address in the family of `vip`.
    pub fn address(&self, vip: IpAddr) -> IpAddr {
        if vip.is_ipv4() { self.v4 } else { self.v6 }
    }

    /// Waits until its web server answers in both families, at its own addresses.
    pub fn wait_ready(&mut self, bed: &Bed) -> Result<()> {
        for address in [self.v4, self.v6] {
            let Self { running, .. } = self;
            let ready = wait_for(&format!("{} answers at {address}", running.name), PATIENCE, || {
                if let Some(status) = running.ended()? {
                    return Ok(!status.success());
                }
                Ok(http::get(&bed.lb, (address, 80).into(), "/healthz", Duration::from_secs(2))?.status == 200)
            });
            if let Some(status) = running.ended()? {
                bail!("{} ended ({status}); its console:\n{}", running.name, running.log_tail());
            }
            ready.with_context(|| format!("its console:\n{}", running.log_tail()))?;
        }
        Ok(())
    }
}

fn addresses(number: u16, place: Place) -> (IpAddr, IpAddr) {
    match place {
        Place::Switch => (server_v4(number), server_v6(number)),
        Place::BehindRouter => ([10, 4, 0, 10 + number as u8].into(), [0xfd04, 0, 0, 0, 0, 0, 0, 0x10 + number].into()),
    }
}

/// Makes the guest's end of the cable; the namespace in which it is.
fn plug(bed: &Bed, tap: &str, place: Place) -> Result<Netns> {
    let netns = match place {
        Place::Switch => &bed.switch,
        Place::BehindRouter => bed.router.as_ref().with_context(|| format!("{:?} has no router", bed.layout))?,
    };
    netns.ip(&format!("tuntap add {tap} mode tap"))?;
    match place {
        Place::Switch => netns.ip(&format!("link set {tap} master br0"))?,
        Place::BehindRouter => {
            netns.ip(&format!("addr add 10.4.0.1/24 dev {tap}\naddr add fd04::1/64 dev {tap} nodad"))?;
        }
    }
    netns.ip(&format!("link set {tap} up"))?;
    Ok(netns.clone())
}

/// What `cargo xtask setup` has unpacked.
fn parts() -> Result<PathBuf> {
    let dir = cache()?.join("linux-6.12");
    if !dir.join("recipe").exists() {
        bail!("there is no kernel for guests in {}: run `cargo xtask setup`", dir.display());
    }
    Ok(dir)
}

/// Where xtask keeps what guests are made of.
pub(crate) fn cache() -> Result<PathBuf> {
    let usual = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/weir/guest"));
    let set = std::env::var_os("WEIR_GUEST").map(PathBuf::from).or_else(usual);
    set.context("neither WEIR_GUEST nor HOME says where guests are: `cargo xtask test` does")
}

fn archive(parts: &Path, name: &str, init: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["proc", "sys", "dev", "tmp", "run", "srv/files"] {
        archive.dir(dir);
    }
    archive.program("busybox", "bin")?;
    archive.program("ip", "sbin")?;
    archive.program("nginx", "sbin")?;
    let order = fs::read_to_string(parts.join("order")).context("can't read the list of modules")?;
    for module in order.lines() {
        archive.copy(&parts.join("modules").join(module), &format!("modules/{module}"))?;
    }
    archive.file("order", 0o644, order.as_bytes());
    // nginx looks up the user that it would become.
    archive.file("etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n");
    archive.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
    archive.file("srv/nginx.conf", 0o644, servers::nginx_config(name, "/srv/files").as_bytes());
    archive.file("init", 0o755, init.as_bytes());
    Ok(archive.finish())
}

/// The guest's whole user space. The tunnels are what docs/operations.md tells operators to make on
/// a backend.
fn init(v4: IpAddr, v6: IpAddr, place: Place) -> String {
    let (gateway_v4, gateway_v6) = match place {
        Place::Switch => ("10.2.0.1", "fd02::1"),
        Place::BehindRouter => ("10.4.0.1", "fd04::1"),
    };
    let mut script = format!(
        "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read module; do insmod /modules/$module; done < /order
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore
echo 2 > /proc/sys/net/ipv4/conf/all/arp_announce
/sbin/ip link set lo up
/sbin/ip link set eth0 up
/sbin/ip addr add {v4}/24 dev eth0
/sbin/ip addr add {v6}/64 dev eth0
/sbin/ip route add default via {gateway_v4}
/sbin/ip -6 route add default via {gateway_v6}
/sbin/ip link add weir44 type ipip local {v4}
/sbin/ip link add weir64 type sit local {v4}
/sbin/ip link add weir6 type ip6tnl mode any local {v6}
for tunnel in weir44 weir64 weir6; do
    echo 0 > /proc/sys/net/ipv4/conf/$tunnel/rp_filter
    /sbin/ip link set $tunnel up
done
echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
"
    );
    let mut line = |text: String| writeln!(script, "{text}").expect("a string has room");
    for vip in VIPS {
        line(format!("/sbin/ip addr add {vip} dev lo"));
    }
    for port in UPLOAD_PORTS {
        line(format!("nc -ll -p {port} -e /bin/sha256sum &"));
    }
    line("/sbin/nginx -p /srv -e stderr -c /srv/nginx.conf".to_owned());
    // The kernel panics when this ends, and QEMU with it.
    line("echo \"nginx ended ($?)\"".to_owned());
    script
}
