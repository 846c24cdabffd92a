//! The way to a file through symbolic links, each of which may be changed to point elsewhere.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

/// The kernel's limit of links in one path.
const MAX_LINKS: usize = 40;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trail {
    /// Directories that contain a link on the way, or the file itself.
    pub directories: BTreeSet<PathBuf>,
    /// The links and the file, each in one of the directories.
    pub names: BTreeSet<PathBuf>,
}

impl Trail {
    /// The current trail; it ends where a component of the path is missing.
    pub fn of(path: &Path) -> Self {
        let mut trail = Self::default();
        // The path is relative to a directory that is gone: there is nothing to follow.
        let Ok(mut path) = std::path::absolute(path) else { return trail };
        for _ in 0..MAX_LINKS {
            match first_link(&path) {
                Some((link, beyond)) => {
                    trail.add(&link);
                    path = beyond;
                }
                None => break,
            }
        }
        trail.add(&path);
        trail
    }

    fn add(&mut self, name: &Path) {
        if let Some(directory) = name.parent() {
            self.directories.insert(directory.to_owned());
        }
        self.names.insert(name.to_owned());
    }
}

/// The first link in `path`, and `path` with that link followed.
fn first_link(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut prefix = PathBuf::new();
    let mut components = path.components();
    while let Some(component) = components.next() {
        match component {
            // `prefix` contains no link at this point, so its last component can be removed.
            Component::ParentDir => {
                prefix.pop();
                continue;
            }
            other => prefix.push(other),
        }
        if let Ok(target) = std::fs::read_link(&prefix) {
            let directory = prefix.parent().unwrap_or(Path::new("/"));
            return Some((prefix.clone(), directory.join(target).join(components.as_path())));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_link_on_the_way_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().canonicalize().unwrap().join(name);
        std::fs::create_dir_all(at("conf/..one")).unwrap();
        std::fs::write(at("conf/..one/weir.yaml"), "").unwrap();
        symlink("..one", at("conf/..data")).unwrap();
        symlink("..data/weir.yaml", at("conf/weir.yaml")).unwrap();
        symlink("../conf/weir.yaml", at("conf/outer.yaml")).unwrap();
        let trail = Trail::of(&at("conf/outer.yaml"));
        let names = ["conf/outer.yaml", "conf/weir.yaml", "conf/..data", "conf/..one/weir.yaml"].map(at);
        assert_eq!(trail.names, BTreeSet::from(names));
        assert_eq!(trail.directories, BTreeSet::from(["conf", "conf/..one"].map(at)));
    }

    #[test]
    fn a_circle_of_links_ends() {
        let folder = tempfile::tempdir().unwrap();
        symlink("b", folder.path().join("a")).unwrap();
        symlink("a", folder.path().join("b")).unwrap();
        assert_eq!(Trail::of(&folder.path().join("a")).names.len(), 2);
    }
}
