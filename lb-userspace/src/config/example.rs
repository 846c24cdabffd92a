//! What `weir config init` prints.

use std::io;

use crate::model::seed;

/// A commented example with a seed of its own; it is valid as it stands.
pub fn example() -> io::Result<String> {
    Ok(include_str!("example.yaml").replace(SEED_PLACE, &seed::to_hex(&seed::random()?)))
}

const SEED_PLACE: &str = "@SEED@";
