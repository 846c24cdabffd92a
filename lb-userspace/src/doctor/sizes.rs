//! Checks whether the maps are as large as the configuration requires.

use std::path::Path;

use aya::maps::MapInfo;

use super::finding::warning;
use crate::{
    dataplane::sizes::MapSizes,
    model::{Config, FlowTablesInUse},
    view::types::Finding,
};

/// Finds pinned maps that are smaller than a start with this configuration would make them: since
/// the last start, its sizes have grown, or it has got its first service of a mode.
pub(super) fn finding(config: &Config, pin_dir: &Path) -> Option<Finding> {
    let sizes = MapSizes::of(&config.node, FlowTablesInUse::of(&config.services));
    let small = sizes.iter().filter_map(|(name, wanted)| {
        let pinned = MapInfo::from_pin(pin_dir.join(name)).ok()?.max_entries();
        (pinned < wanted).then(|| format!("{name} has room for {pinned} entries instead of {wanted}"))
    });
    said(&small.collect::<Vec<_>>())
}

fn said(small: &[String]) -> Option<Finding> {
    if small.is_empty() {
        return None;
    }
    Some(warning(
        "map sizes",
        format!(
            "{}: since the agent started, the configuration has got larger sizes, or its first service of a mode \
            (nat, or dsr-*)",
            small.join(", ")
        ),
        "restart the agent (`systemctl restart weir`), which makes the maps larger and loses no connection",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_are_too_small_are_named_together_with_what_makes_them_larger() {
        assert_eq!(said(&[]), None);
        let small = ["A", "B"].map(|name| format!("{name} has room for 8192 entries instead of 131072"));
        let finding = said(&small).unwrap();
        assert!(finding.message.contains("A has room for 8192") && finding.message.contains(", B has room"));
        assert!(finding.remedy.contains("restart"));
    }
}
