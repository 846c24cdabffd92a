//! What is wrong with a configuration file, and where.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// One mistake: `weir.yaml:12:9: services[0].port: must be 1 to 65535, is 0`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    pub file: PathBuf,
    /// Starts at 1.
    pub line: usize,
    /// Starts at 1, in characters.
    pub column: usize,
    /// As in `services[0].backends[1].port`; empty if the problem concerns the document as a whole.
    pub key: String,
    /// What is wrong and what to do.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file.display(), self.line, self.column)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.reason)
    }
}

/// Every mistake in a file, in the order of the lines; never empty.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", lines(.0))]
pub struct Problems(pub Vec<Problem>);

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// Why the configuration could not be loaded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("can't read {}: {source}", .path.display())]
    Unreadable { path: PathBuf, source: Arc<io::Error> },
    #[error(transparent)]
    Invalid(#[from] Problems),
}

impl ConfigError {
    pub fn unreadable(path: &Path, source: io::Error) -> Self {
        Self::Unreadable { path: path.to_owned(), source: Arc::new(source) }
    }

    /// One line for each mistake, as the status shows them.
    pub fn messages(&self) -> Vec<String> {
        match self {
            Self::Unreadable { .. } => vec![self.to_string()],
            Self::Invalid(problems) => problems.0.iter().map(Problem::to_string).collect(),
        }
    }
}
