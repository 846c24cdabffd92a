use super::*;

/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON and CAP_BPF, from linux/capability.h.
const FOUR: u64 = 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39;

fn effective(texts: &[&str]) -> u64 {
    let mut settings = Settings::default();
    texts.iter().for_each(|text| settings.read(text));
    settings.effective()
}

fn of(lines: &str) -> u64 {
    effective(&[&format!("[Service]\n{lines}\n")])
}

#[test]
fn shipped_unit_gives_exactly_the_four_capabilities() {
    let text = include_str!("../../../../deploy/systemd/weir.service");
    assert_eq!(effective(&[text]), FOUR);
}

#[test]
fn bounding_set_is_merged_as_systemd_exec_5_says() {
    for (lines, expected) in [
        ("", ALL),
        ("CapabilityBoundingSet=CAP_BPF", 1 << 39),
        ("CapabilityBoundingSet=cap_bpf CAP_NOBODY_KNOWS", 1 << 39),
        ("CapabilityBoundingSet=CAP_BPF\nCapabilityBoundingSet=CAP_NET_RAW CAP_NET_ADMIN", 1 << 39 | 1 << 13 | 1 << 12),
        ("CapabilityBoundingSet=CAP_BPF\nCapabilityBoundingSet=", 0),
        ("CapabilityBoundingSet=CAP_BPF\nCapabilityBoundingSet=\nCapabilityBoundingSet=CAP_NET_RAW", 1 << 13),
        ("CapabilityBoundingSet=~CAP_BPF", ALL & !(1 << 39)),
        (
            "CapabilityBoundingSet=~CAP_BPF CAP_NET_RAW\nCapabilityBoundingSet=~CAP_PERFMON",
            ALL & !(1 << 39 | 1 << 13 | 1 << 38),
        ),
        // The example of systemd.exec(5): CAP_A and CAP_C remain.
        ("CapabilityBoundingSet=CAP_CHOWN CAP_KILL\nCapabilityBoundingSet=~CAP_KILL CAP_SYSLOG", 1),
        ("CapabilityBoundingSet=CAP_BPF\nCapabilityBoundingSet=~", ALL),
        ("# CapabilityBoundingSet=CAP_KILL\n; CapabilityBoundingSet=CAP_KILL", ALL),
        ("CapabilityBoundingSet = CAP_BPF \\\n# between\n  CAP_NET_RAW\nUMask=0077", 1 << 39 | 1 << 13),
        ("[Install]\nCapabilityBoundingSet=CAP_BPF", ALL),
    ] {
        assert_eq!(of(lines), expected, "{lines}");
    }
}

#[test]
fn another_user_than_root_has_only_what_is_ambient() {
    assert_eq!(of("User=weir"), 0);
    assert_eq!(of("User=weir\nAmbientCapabilities=CAP_BPF CAP_NET_RAW\nCapabilityBoundingSet=CAP_BPF"), 1 << 39);
    assert_eq!(of("User=weir\nUser="), ALL);
    assert_eq!(of("User=root\nCapabilityBoundingSet=CAP_BPF"), 1 << 39);
}

#[test]
fn first_directory_wins_and_drop_ins_of_all_come_in_the_order_of_their_names() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let directories = ["etc", "run", "lib"].map(|name| root.path().join(name));
    assert_eq!(found(&directories), None);
    write("lib/weir.service", "[Service]\nCapabilityBoundingSet=CAP_BPF\n");
    write("etc/weir.service.d/20-more.conf", "[Service]\nCapabilityBoundingSet=CAP_NET_RAW\n");
    write("lib/weir.service.d/10-none.conf", "[Service]\nCapabilityBoundingSet=\n");
    write("lib/weir.service.d/20-more.conf", "[Service]\nCapabilityBoundingSet=CAP_KILL\n");
    write("lib/weir.service.d/30-other.txt", "[Service]\nCapabilityBoundingSet=CAP_KILL\n");
    let path = root.path().join("lib/weir.service");
    assert_eq!(found(&directories), Some(Unit { path, effective: 1 << 13 }));
    write("run/weir.service", "[Service]\nUser=nobody\n");
    assert_eq!(found(&directories).unwrap().path, root.path().join("run/weir.service"));
    std::os::unix::fs::symlink("/dev/null", root.path().join("etc/weir.service")).unwrap();
    assert_eq!(found(&directories), None, "it is masked");
}
