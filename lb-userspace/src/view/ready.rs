//! Whether an agent is ready, and if not, why not.

use super::types::Snapshot;

/// What the agent is still waiting for; `None` once it is ready. Ready means: the programs are
/// attached to every interface, the maps have been written at least once, and the backends have
/// first verdicts, or have had enough time to get them.
pub fn not_ready(snapshot: &Snapshot) -> Option<String> {
    if snapshot.status.sync.last_success_at <= 0.0 {
        let why = snapshot.status.sync.last_error.as_deref().unwrap_or("it is under way");
        return Some(format!("the maps have not been written yet: {why}"));
    }
    if snapshot.interfaces.is_empty() {
        return Some("attached to no interface".to_owned());
    }
    if !snapshot.status.waiting_for.is_empty() {
        return Some(format!("waiting for {}", snapshot.status.waiting_for));
    }
    let lost = snapshot.interfaces.iter().find(|interface| interface.xdp_mode == "none")?;
    Some(format!("not attached to {}: {}", lost.name, lost.problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::types::InterfaceView;

    fn interface(xdp_mode: &str) -> InterfaceView {
        InterfaceView {
            name: "eth0".to_owned(),
            ifindex: 2,
            xdp_mode: xdp_mode.to_owned(),
            tc: "tcx".to_owned(),
            mtu: 1500,
            actions: Vec::new(),
            problem: "the hook is lost".to_owned(),
        }
    }

    #[test]
    fn ready_takes_a_sync_and_every_hook() {
        let mut snapshot = Snapshot::default();
        assert!(not_ready(&snapshot).unwrap().contains("not been written"));
        snapshot.status.sync.last_success_at = 1.0;
        assert!(not_ready(&snapshot).unwrap().contains("no interface"));
        snapshot.interfaces = vec![interface("native")];
        assert_eq!(not_ready(&snapshot), None);
        snapshot.interfaces.push(interface("none"));
        assert!(not_ready(&snapshot).unwrap().contains("the hook is lost"));
    }
}
