//! What entries mean, as [`LAYOUT`] counts it: a change that their members' names and widths don't
//! show, such as what an index stands for.

use lb_common::settings::LAYOUT;

/// Whether what a build of layout `from` has written means to this build what it says. A change of
/// meaning that does not gets its own step here: it is known by both numbers, and runs on the new
/// maps once they are copied.
pub const fn is_understood(from: u32) -> bool {
    match (from, LAYOUT) {
        // Nothing was written yet.
        (0, _) => true,
        // 2 has wider backends and settings, and more maps; what there was means what it meant.
        (1, 2) => true,
        (from, to) => from == to,
    }
}
