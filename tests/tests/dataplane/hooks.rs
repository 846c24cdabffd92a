use std::path::Path;

use aya::{
    Ebpf,
    maps::{MapInfo, loaded_maps},
    programs::{LinkOrder, ProgramInfo, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};
use lb_common::limits::map;
use lb_userspace::{
    dataplane::{
        bpffs::BpffsError,
        cleanup::{CleanupError, cleanup},
        data_path::DataPath,
        hooks::{Hook, TcHook},
        load::{BpfLog, LoadError},
        sizes::MapSizes,
    },
    model::XdpMode,
    node::{
        changes::{Changes, News},
        interfaces::{HookMode, Interface, Netlink, matching},
    },
};

use crate::sandbox::{Sandbox, sandbox};

async fn interface(netlink: &Netlink, name: &str) -> Interface {
    let interfaces = netlink.interfaces().await.unwrap();
    matching(&interfaces, &[name.to_owned()]).0.first().map(|interface| (*interface).clone()).unwrap()
}

async fn sync(data_path: &mut DataPath, netlink: &Netlink, names: &[&str], mode: XdpMode) -> Vec<Hook> {
    let patterns: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let interfaces = netlink.interfaces().await.unwrap();
    data_path.sync(&matching(&interfaces, &patterns).0, mode)
}

/// The programs at TC ingress and egress of an interface.
fn tc_programs(name: &str) -> Vec<String> {
    let hooks =
        [TcAttachType::Ingress, TcAttachType::Egress].map(|hook| SchedClassifier::query_tcx(name, hook).unwrap().1);
    hooks.iter().flatten().map(|info| info.name_as_str().unwrap().to_owned()).collect()
}

fn open(sandbox: &Sandbox) -> DataPath {
    DataPath::open(&sandbox.pin_dir(), BpfLog::Off).unwrap()
}

#[test]
fn hooks_outlive_the_agent_and_the_next_one_replaces_the_programs_in_place() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        let mut first = open(sandbox);
        let hooks = sync(&mut first, &netlink, &["one"], XdpMode::Auto).await;
        assert_eq!((hooks[0].xdp, hooks[0].problem.as_str()), (Some(HookMode::Native), ""));
        assert_eq!(hooks[0].tc, TcHook::Tcx);
        let before = interface(&netlink, "one").await.xdp.unwrap();
        drop(first);
        assert_eq!(interface(&netlink, "one").await.xdp, Some(before));

        let mut second = open(sandbox);
        assert_eq!(interface(&netlink, "one").await.xdp, Some(before));
        let hooks = sync(&mut second, &netlink, &["one"], XdpMode::Auto).await;
        assert_eq!((hooks[0].xdp, hooks[0].problem.as_str()), (Some(HookMode::Native), ""));
        let after = interface(&netlink, "one").await.xdp.unwrap();
        assert_ne!(after.program, before.program);
        assert_eq!(second.lost_hooks(), 0);
        assert_eq!(tc_programs("one"), ["weir_ingress", "weir_egress"]);
    });
}

#[test]
fn listing_from_before_the_take_over_harms_nothing() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        sync(&mut open(sandbox), &netlink, &["one"], XdpMode::Auto).await;
        let stale = interface(&netlink, "one").await;
        let mut data_path = open(sandbox);
        for _ in 0..2 {
            let hooks = data_path.sync(&[&stale], XdpMode::Auto);
            assert_eq!((hooks[0].xdp, hooks[0].problem.as_str()), (Some(HookMode::Native), ""));
        }
        assert_eq!(data_path.lost_hooks(), 0);
    });
}

#[test]
fn interface_with_another_xdp_program_is_refused_by_that_programs_name() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        let mut other = DataPath::open(&sandbox.bpffs().join("other"), BpfLog::Off).unwrap();
        sync(&mut other, &netlink, &["one"], XdpMode::Auto).await;
        let id = interface(&netlink, "one").await.xdp.unwrap().program;

        let hooks = sync(&mut open(sandbox), &netlink, &["one"], XdpMode::Auto).await;
        assert!(hooks[0].is_taken && hooks[0].xdp.is_none() && hooks[0].tc == TcHook::None);
        assert!(hooks[0].problem.contains(&format!("weir_xdp (id {id}, native)")), "{}", hooks[0].problem);
        assert_eq!(interface(&netlink, "one").await.xdp.unwrap().program, id);
    });
}

/// The ids of the programs at a TC hook, in the order in which they run.
fn tc_order(name: &str, direction: TcAttachType) -> Vec<u32> {
    SchedClassifier::query_tcx(name, direction).unwrap().1.iter().map(ProgramInfo::id).collect()
}

#[test]
fn among_others_ours_runs_first_at_ingress_and_last_at_egress() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        // Another program of that type: our own object, loaded by somebody else.
        let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/weir.bpf.o");
        let mut others = Ebpf::load_file(object).unwrap();
        let other: &mut SchedClassifier = others.program_mut("weir_ingress").unwrap().try_into().unwrap();
        other.load().unwrap();
        let theirs = other.info().unwrap().id();
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            let options = TcAttachOptions::TcxOrder(LinkOrder::default());
            other.attach_with_options("one", direction, options).unwrap();
        }
        let mut data_path = open(sandbox);
        let hooks = sync(&mut data_path, &netlink, &["one"], XdpMode::Auto).await;
        assert_eq!((hooks[0].tc, hooks[0].problem.as_str()), (TcHook::Tcx, ""));
        let [ingress, egress] = [TcAttachType::Ingress, TcAttachType::Egress].map(|hook| tc_order("one", hook));
        assert_eq!((ingress.len(), ingress.last()), (2, Some(&theirs)));
        assert_eq!((egress.len(), egress.first()), (2, Some(&theirs)));
    });
}

#[test]
fn filters_of_clsact_run_first_at_ingress_and_last_at_egress() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        drop(open_with_clsact(sandbox, &netlink).await);
        for (direction, priority) in [("ingress", "pref 1 "), ("egress", "pref 65535 ")] {
            let filters = sandbox.run(&format!("tc filter show dev one {direction}"));
            assert!(filters.contains(priority), "{direction}: {filters}");
        }
    });
}

#[test]
fn second_agent_with_the_same_pins_is_refused() {
    sandbox(async |sandbox| {
        let _first = open(sandbox);
        let second = DataPath::open(&sandbox.pin_dir(), BpfLog::Off);
        assert!(matches!(second, Err(LoadError::Bpffs(BpffsError::InUse(_)))));
        assert!(matches!(cleanup(&sandbox.pin_dir()), Err(CleanupError::Bpffs(BpffsError::InUse(_)))));
    });
}

#[test]
fn interface_that_leaves_the_configuration_is_released() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        sync(&mut open(sandbox), &netlink, &["one", "two"], XdpMode::Auto).await;
        assert!(interface(&netlink, "one").await.xdp.is_some() && interface(&netlink, "two").await.xdp.is_some());
        sync(&mut open(sandbox), &netlink, &["two"], XdpMode::Auto).await;
        assert!(interface(&netlink, "one").await.xdp.is_none() && interface(&netlink, "two").await.xdp.is_some());
        assert_eq!(tc_programs("one"), Vec::<String>::new());
    });
}

#[test]
fn lost_hooks_are_counted_and_attached_again() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        let mut data_path = open(sandbox);
        sync(&mut data_path, &netlink, &["one"], XdpMode::Auto).await;

        let pin = sandbox.pin_dir().join(format!("link-xdp-{}", interface(&netlink, "one").await.index));
        sandbox.run(&format!("bpftool link detach pinned {}", pin.display()));
        assert!(interface(&netlink, "one").await.xdp.is_none());
        let hooks = sync(&mut data_path, &netlink, &["one"], XdpMode::Auto).await;
        assert_eq!((hooks[0].xdp, hooks[0].problem.as_str()), (Some(HookMode::Native), ""));
        assert_eq!(data_path.lost_hooks(), 1);

        sandbox.run("ip link del one");
        sandbox.veth("one", "two");
        let hooks = sync(&mut data_path, &netlink, &["one"], XdpMode::Auto).await;
        assert_eq!((hooks[0].xdp, hooks[0].problem.as_str()), (Some(HookMode::Native), ""));
        assert!(!pin.exists(), "the pin of the interface that is gone");
        let steady = data_path.lost_hooks();
        sync(&mut data_path, &netlink, &["one"], XdpMode::Auto).await;
        assert_eq!(data_path.lost_hooks(), steady);
    });
}

#[test]
fn mode_changes_on_request_and_stays_under_auto() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        let mut data_path = open(sandbox);
        for (wanted, got) in [
            (XdpMode::Generic, HookMode::Generic),
            (XdpMode::Auto, HookMode::Generic),
            (XdpMode::Native, HookMode::Native),
            (XdpMode::Auto, HookMode::Native),
        ] {
            let hooks = sync(&mut data_path, &netlink, &["one"], wanted).await;
            assert_eq!((hooks[0].xdp, hooks[0].problem.as_str()), (Some(got), ""), "{wanted:?}");
            assert_eq!(interface(&netlink, "one").await.xdp.unwrap().mode, got, "{wanted:?}");
        }
    });
}

#[test]
fn auto_falls_back_to_generic_where_the_driver_has_no_xdp_and_native_says_so() {
    sandbox(async |sandbox| {
        sandbox.run("ip link add bridge type bridge");
        let netlink = Netlink::connect().unwrap();
        let mut data_path = open(sandbox);
        let hooks = sync(&mut data_path, &netlink, &["bridge"], XdpMode::Native).await;
        assert!(hooks[0].xdp.is_none() && !hooks[0].is_taken);
        assert!(hooks[0].problem.contains("bridge: no native XDP"), "{}", hooks[0].problem);
        let hooks = sync(&mut data_path, &netlink, &["bridge"], XdpMode::Auto).await;
        assert_eq!((hooks[0].xdp, hooks[0].problem.as_str()), (Some(HookMode::Generic), ""));
    });
}

#[test]
fn cleanup_leaves_nothing_and_a_second_one_has_nothing_to_do() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        sync(&mut open(sandbox), &netlink, &["one"], XdpMode::Auto).await;
        let done = cleanup(&sandbox.pin_dir()).unwrap();
        assert!(done.contains(&"detached weir_xdp from one".to_owned()), "{done:?}");
        assert!(done.contains(&"removed map RINGS".to_owned()), "{done:?}");
        assert!(interface(&netlink, "one").await.xdp.is_none());
        assert_eq!(tc_programs("one"), Vec::<String>::new());
        assert!(!sandbox.pin_dir().exists());
        assert_eq!(cleanup(&sandbox.pin_dir()).unwrap(), Vec::<String>::new());
    });
}

#[test]
fn pin_directory_elsewhere_than_on_a_bpffs_is_refused_with_the_remedy() {
    sandbox(async |_| {
        let refused = DataPath::open(Path::new("/tmp/weir-no-bpffs"), BpfLog::Off).err().unwrap();
        assert!(refused.to_string().contains("mount -t bpf bpf /sys/fs/bpf"), "{refused}");
        assert!(!Path::new("/tmp/weir-no-bpffs").exists());
    });
}

/// The filters of clsact on an interface, and whether it has the qdisc.
fn clsact(sandbox: &Sandbox, name: &str) -> (Vec<String>, bool) {
    let filters = ["ingress", "egress"].map(|direction| sandbox.run(&format!("tc filter show dev {name} {direction}")));
    let ours = |text: &String| text.lines().filter(|line| line.contains("weir_")).count();
    let programs = ["weir_ingress", "weir_egress"].into_iter().zip(&filters);
    let found = programs.filter(|(program, text)| ours(text) == 1 && text.contains(program));
    let has_qdisc = sandbox.run(&format!("tc qdisc show dev {name}")).contains("clsact");
    (found.map(|(program, _)| program.to_owned()).collect(), has_qdisc)
}

const BOTH: [&str; 2] = ["weir_ingress", "weir_egress"];

async fn open_with_clsact(sandbox: &Sandbox, netlink: &Netlink) -> DataPath {
    let mut data_path = open(sandbox);
    data_path.use_clsact();
    let hooks = sync(&mut data_path, netlink, &["one"], XdpMode::Auto).await;
    assert_eq!((hooks[0].tc, hooks[0].problem.as_str()), (TcHook::Clsact, ""));
    data_path
}

#[test]
fn filter_that_somebody_removes_is_a_lost_hook_and_put_back() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        let mut data_path = open_with_clsact(sandbox, &netlink).await;
        for (lost, removed) in [
            (1, "tc filter del dev one ingress"),
            (2, "tc filter del dev one egress"),
            // The qdisc takes both with it.
            (4, "tc qdisc del dev one clsact"),
        ] {
            sandbox.run(removed);
            assert_ne!(clsact(sandbox, "one").0, BOTH, "{removed}");
            sync(&mut data_path, &netlink, &["one"], XdpMode::Auto).await;
            assert_eq!(clsact(sandbox, "one"), (BOTH.map(str::to_owned).to_vec(), true), "{removed}");
            assert_eq!(data_path.lost_hooks(), lost, "{removed}");
            sync(&mut data_path, &netlink, &["one"], XdpMode::Auto).await;
            assert_eq!(data_path.lost_hooks(), lost, "nothing was lost since {removed}");
        }
        drop(data_path);
        // The next agent finds its filters, and also that one is gone.
        assert_eq!(open_with_clsact(sandbox, &netlink).await.lost_hooks(), 0);
        sandbox.run("tc filter del dev one egress");
        assert_eq!(open_with_clsact(sandbox, &netlink).await.lost_hooks(), 1);
        assert_eq!(clsact(sandbox, "one").0, BOTH);
    });
}

#[test]
fn removed_filter_is_told_by_the_kernel_and_our_own_replacements_are_not() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        let mut data_path = open_with_clsact(sandbox, &netlink).await;
        let mut changes = Changes::watch().unwrap();
        // What the kernel has to tell of a new link (its carrier, its addresses) it tells within
        // two seconds, and on a busy machine that is not over yet.
        for end in ["one", "two"] {
            sandbox.run(&format!("sysctl -qw net.ipv6.conf.{end}.disable_ipv6=1"));
        }
        let settled = std::time::Duration::from_secs(2);
        while tokio::time::timeout(settled, changes.next()).await.is_ok() {}
        let quiet = std::time::Duration::from_millis(300);
        sync(&mut data_path, &netlink, &["one"], XdpMode::Auto).await;
        let told = tokio::time::timeout(quiet, changes.next()).await;
        assert!(told.is_err(), "looking after the hooks made news of itself: {told:?}");
        for removed in ["tc filter del dev one ingress", "tc qdisc del dev one clsact"] {
            sandbox.run(removed);
            let told = tokio::time::timeout(std::time::Duration::from_secs(5), changes.next()).await;
            assert_eq!(told, Ok(Some(News { interfaces: true, ..News::default() })), "{removed}");
            sync(&mut data_path, &netlink, &["one"], XdpMode::Auto).await;
            while tokio::time::timeout(quiet, changes.next()).await.is_ok() {}
        }
    });
}

#[test]
fn clsact_goes_with_weir_only_if_weir_made_it_and_nobody_else_uses_it() {
    sandbox(async |sandbox| {
        let netlink = Netlink::connect().unwrap();
        let bytecode = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(bytecode.path(), "1,6 0 0 0").unwrap();
        let foreign = format!("tc filter add dev one ingress prio 7 bpf bytecode-file {}", bytecode.path().display());
        for (before, then, stays) in
            [(None, None, false), (Some("tc qdisc add dev one clsact"), None, true), (None, Some(foreign), true)]
        {
            sandbox.veth("one", "two");
            before.map(|command| sandbox.run(command));
            drop(open_with_clsact(sandbox, &netlink).await);
            then.as_deref().map(|command| sandbox.run(command));
            let done = cleanup(&sandbox.pin_dir()).unwrap().join("\n");
            assert_eq!(clsact(sandbox, "one"), (Vec::new(), stays), "{before:?} {then:?}: {done}");
            assert_eq!(done.contains("removed the clsact qdisc from one"), !stays, "{before:?} {then:?}: {done}");
            assert!(!sandbox.pin_dir().exists(), "{done}");
            if then.is_some() {
                assert!(sandbox.run("tc filter show dev one ingress").contains("pref 7 bpf"));
            }
            sandbox.run("ip link del one");
        }
        // An interface that leaves the configuration is left without it as well.
        sandbox.veth("one", "two");
        let mut data_path = open_with_clsact(sandbox, &netlink).await;
        sync(&mut data_path, &netlink, &["two"], XdpMode::Auto).await;
        assert_eq!((clsact(sandbox, "one").1, clsact(sandbox, "two").1), (false, true));
    });
}

#[test]
fn filter_without_its_mark_is_known_by_its_name_and_a_strangers_stays() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        drop(open_with_clsact(sandbox, &netlink).await);
        // As after a kill between the filter and its mark.
        let index = interface(&netlink, "one").await.index;
        std::fs::remove_file(sandbox.pin_dir().join(format!("filter-ingress-{index}"))).unwrap();
        assert_eq!(open_with_clsact(sandbox, &netlink).await.lost_hooks(), 0);
        assert_eq!(clsact(sandbox, "one").0, BOTH);
        cleanup(&sandbox.pin_dir()).unwrap();

        let bytecode = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(bytecode.path(), "1,6 0 0 0").unwrap();
        sandbox.run("tc qdisc add dev one clsact");
        let theirs = format!("prio 1 handle 1 bpf bytecode-file {}", bytecode.path().display());
        sandbox.run(&format!("tc filter add dev one ingress {theirs}"));
        let mut data_path = open(sandbox);
        data_path.use_clsact();
        for _ in 0..2 {
            let hooks = sync(&mut data_path, &netlink, &["one"], XdpMode::Auto).await;
            assert!(hooks[0].problem.contains("another filter has priority 1"), "{}", hooks[0].problem);
            assert!(sandbox.run("tc filter show dev one ingress").contains("bytecode"));
        }
    });
}

#[test]
fn qdisc_that_weir_added_does_not_keep_the_maps_of_the_build_that_added_it() {
    sandbox(async |sandbox| {
        sandbox.veth("one", "two");
        let netlink = Netlink::connect().unwrap();
        drop(open_with_clsact(sandbox, &netlink).await);
        let old = MapInfo::from_pin(sandbox.pin_dir().join(map::NAT_ESTABLISHED_V4)).unwrap().id();
        let sizes = MapSizes::from_iter([(map::NAT_ESTABLISHED_V4, 1000)]);
        let mut data_path = DataPath::open_sized(&sandbox.pin_dir(), BpfLog::Off, &sizes).unwrap();
        data_path.use_clsact();
        sync(&mut data_path, &netlink, &["one"], XdpMode::Auto).await;
        let begun = std::time::Instant::now();
        // The kernel frees it a moment after its last program.
        while loaded_maps().filter_map(Result::ok).any(|map| map.id() == old) {
            assert!(begun.elapsed().as_secs() < 10, "map {old} of the build before is still there");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    });
}
