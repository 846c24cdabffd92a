//! The meaning of entries, versioned by [`LAYOUT`]: changes that the names and widths of members
//! don't show, such as what an index refers to.

use lb_common::settings::LAYOUT;

/// Whether this build understands what a build of layout `from` has written. Entries are only
/// copied: a change of meaning that needs a conversion would also need a step, not written yet,
/// that runs on the new maps after the copy.
pub const fn is_understood(from: u32) -> bool {
    match (from, LAYOUT) {
        // Nothing has been written yet.
        (0, _) => true,
        // Layout 2 has wider backends and settings, and more maps; everything else kept its
        // meaning.
        (1, 2) => true,
        (from, to) => from == to,
    }
}
