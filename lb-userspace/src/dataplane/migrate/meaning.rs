//! The meaning of entries, versioned by [`LAYOUT`]: changes that the names and widths of members
//! don't show, such as what an index refers to.

use lb_common::settings::LAYOUT;

/// Whether this build understands what a build of layout `from` has written. A change of meaning
/// that it does not understand gets its own step here: the two numbers identify it, and it runs on
/// the new maps once they are copied.
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
