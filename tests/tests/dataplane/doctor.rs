use std::{collections::BTreeSet, path::Path, time::Duration};

use crate::{
    network::{named, resolved},
    sandbox::{Sandbox, sandbox},
};
use lb_userspace::{
    dataplane::{data_path::DataPath, load::BpfLog},
    doctor,
    model::{
        Admin, Affinity, Backend, Config, FlowTables, Limits, Mode, NodeSettings, OnDead, Service, Snat, SourceAddress,
        Timeouts, Tunnel, XdpMode,
    },
    node::interfaces::{Netlink, matching},
    state::{AdminState, ServiceName},
    view::types::{Finding, Severity},
};

fn service(name: &str, vip: &str, mode: Mode, source: SourceAddress, backends: &[&str]) -> Service {
    let backend = |address: &&str| Backend {
        address: address.parse().unwrap(),
        weight: 1,
        tunnel: None,
        zone: None,
        state: AdminState::Active,
        is_here: false,
    };
    Service {
        name: ServiceName::of_file(name),
        vips: vec![vip.parse().unwrap()],
        port: 80,
        mode,
        source,
        affinity: Affinity::None,
        ring_size: 1021,
        drain_timeout: Duration::from_secs(60),
        settle_time: Duration::from_secs(60),
        on_dead: OnDead::Next,
        health: None,
        backends: backends.iter().map(backend).collect(),
        gone: Default::default(),
    }
}

pub fn config(services: Vec<Service>) -> Config {
    Config {
        node: NodeSettings {
            interfaces: vec!["one".to_owned()],
            xdp_mode: XdpMode::Auto,
            hash_seed: None,
            snat: Snat { addresses: Vec::new(), ports: vec![(1024, 32767)] },
            timeouts: Timeouts {
                half_open: Duration::from_secs(30),
                established: Duration::from_secs(7200),
                closing: Duration::from_secs(60),
            },
            tunnel: Tunnel::default(),
            flow_tables: FlowTables::default(),
            limits: Limits::default(),
            admin: Admin { socket: "/run/weir/agent.sock".into(), http: None },
        },
        services,
    }
}

/// A balancer whose interface `one` has 10.1.0.1/24 and fd01::1/64, and a host 10.1.0.2 behind it.
fn balancer(sandbox: &Sandbox) -> crate::sandbox::Host {
    let host = sandbox.host_behind("one", "10.1.0.2/24");
    host.run(sandbox, "ip addr add fd01::2/64 dev far nodad");
    for command in [
        "ip addr add 10.1.0.1/24 dev one",
        "ip addr add fd01::1/64 dev one nodad",
        "sysctl -qw net.ipv4.conf.one.forwarding=1",
        "sysctl -qw net.ipv6.conf.one.forwarding=1",
        "sysctl -qw net.ipv4.conf.all.rp_filter=0",
        "sysctl -qw net.ipv4.conf.one.rp_filter=0",
    ] {
        sandbox.run(command);
    }
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "32768 60999").unwrap();
    host
}

async fn problems(config: &Config, pin_dir: &Path) -> Vec<Finding> {
    let mut findings = doctor::findings(Some(config), pin_dir, &doctor::Subject::Process).await;
    findings.retain(|finding| finding.severity != Severity::Ok);
    findings
}

fn find<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
    findings.iter().find(|finding| finding.check == check).unwrap_or_else(|| panic!("no {check} in {findings:#?}"))
}

#[test]
fn doctor_finds_nothing_on_a_machine_where_all_is_well() {
    sandbox(async |sandbox| {
        let host = balancer(sandbox);
        let netlink = Netlink::connect().unwrap();
        let one = named(&netlink.interfaces().await.unwrap(), "one").index;
        let next_hops = ["10.1.0.2", "fd01::2"].map(|address| (one, address.parse().unwrap()));
        resolved(&netlink, &BTreeSet::from(next_hops)).await;
        let config = config(vec![
            service("web", "192.0.2.10", Mode::Nat, SourceAddress::Translate, &["10.1.0.2:8080"]),
            service("web6", "2001:db8::10", Mode::DsrL2, SourceAddress::Translate, &["[fd01::2]:8080"]),
        ]);
        assert_eq!(problems(&config, &sandbox.pin_dir()).await, []);
        let interfaces = netlink.interfaces().await.unwrap();
        let mut data_path = DataPath::open(&sandbox.pin_dir(), BpfLog::Off).unwrap();
        data_path.sync(&matching(&interfaces, &config.node.interfaces).0, XdpMode::Auto);
        assert_eq!(problems(&config, &sandbox.pin_dir()).await, []);
        drop(host);
    });
}

#[test]
fn doctor_names_what_is_wrong_with_the_interfaces_and_the_command_that_mends_it() {
    sandbox(async |sandbox| {
        let _host = balancer(sandbox);
        let mut config = config(vec![
            service("web", "10.1.0.1", Mode::Nat, SourceAddress::Keep, &["10.1.0.2:8080"]),
            service("web6", "2001:db8::10", Mode::Nat, SourceAddress::Translate, &["[fd01::2]:8080"]),
        ]);
        config.node.interfaces.push("eth7".to_owned());
        config.node.snat.ports = vec![(1024, 40000)];
        let mut other = DataPath::open(&sandbox.bpffs().join("other"), BpfLog::Off).unwrap();
        let interfaces = Netlink::connect().unwrap().interfaces().await.unwrap();
        other.sync(&matching(&interfaces, &config.node.interfaces).0, XdpMode::Generic);
        sandbox.run("sysctl -qw net.ipv4.conf.one.forwarding=0");
        sandbox.run("sysctl -qw net.ipv6.conf.one.forwarding=0");
        sandbox.run("sysctl -qw net.ipv4.conf.one.rp_filter=1");
        sandbox.run("ethtool -K one gro on");

        let found = problems(&config, &sandbox.pin_dir()).await;
        assert!(find(&found, "interfaces").message.contains("eth7"));
        let forwarding: Vec<&str> = found
            .iter()
            .filter(|finding| finding.check == "forwarding one" && finding.severity == Severity::Error)
            .map(|finding| finding.remedy.as_str())
            .collect();
        assert_eq!(
            forwarding,
            ["sysctl -w net/ipv4/conf/one/forwarding=1", "sysctl -w net/ipv6/conf/one/forwarding=1"]
        );
        for remedy in forwarding {
            sandbox.run(remedy);
        }
        assert!(find(&found, "xdp one").message.contains("weir_xdp"));
        assert!(find(&found, "rp_filter one").message.contains("service web "));
        assert_eq!(find(&found, "gro one").remedy, "ethtool -K one gro off");
        assert!(find(&found, "vip").message.contains("10.1.0.1"));
        assert!(find(&found, "snat ports").remedy.contains("ip_local_reserved_ports=32768-40000"));
        let left = problems(&config, &sandbox.pin_dir()).await;
        assert!(!left.iter().any(|finding| finding.check == "forwarding one"), "{left:#?}");
    });
}

#[test]
fn doctor_names_backends_that_cannot_be_reached_as_their_mode_wants() {
    sandbox(async |sandbox| {
        let _host = balancer(sandbox);
        sandbox.veth("two", "three");
        sandbox.run("ip addr add 10.9.0.1/24 dev two");
        sandbox.run("ip route add 10.2.0.0/16 via 10.1.0.2");
        let config = config(vec![
            service("direct", "192.0.2.10", Mode::DsrL2, SourceAddress::Translate, &["10.1.0.1:80", "10.2.0.1:80"]),
            service(
                "web",
                "192.0.2.11",
                Mode::Nat,
                SourceAddress::Translate,
                &["10.9.0.2:80", "10.77.0.1:80", "10.1.0.9:80"],
            ),
        ]);
        let found = problems(&config, &sandbox.pin_dir()).await;
        assert!(find(&found, "backend direct/10.1.0.1").message.contains("address of this node"));
        assert!(find(&found, "backend direct/10.2.0.1").message.contains("behind a router"));
        assert_eq!(find(&found, "backend web/10.9.0.2").remedy, "add two to `interfaces`");
        assert!(find(&found, "backend web/10.77.0.1").message.contains("no route"));
        assert!(find(&found, "backend web/10.1.0.9").message.contains("not resolved"));
    });
}

#[test]
fn doctor_says_how_to_mount_the_bpffs() {
    sandbox(async |_| {
        let found = doctor::findings(None, Path::new("/tmp/no-bpffs"), &doctor::Subject::Process).await;
        assert_eq!(find(&found, "bpffs").remedy, "mount -t bpf bpf /sys/fs/bpf");
    });
}
