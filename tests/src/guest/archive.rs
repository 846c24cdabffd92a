//! A file system in an archive (cpio "newc"), which a kernel unpacks at its start.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::process::{check, output};

#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    names: BTreeSet<String>,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

impl Archive {
    /// A directory and those above it; paths are without a leading slash.
    pub fn dir(&mut self, path: &str) {
        if path.is_empty() || !self.names.insert(path.to_owned()) {
            return;
        }
        self.parents(path);
        self.entry(path, DIRECTORY | 0o755, &[]);
    }

    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        if self.names.insert(path.to_owned()) {
            self.parents(path);
            self.entry(path, REGULAR | mode, content);
        }
    }

    /// The file at `from` of this machine, with its permissions.
    pub fn copy(&mut self, from: &Path, to: &str) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("can't read {}", from.display()))?;
        let mode =
            fs::metadata(from).with_context(|| format!("can't look at {}", from.display()))?.permissions().mode();
        self.file(to, mode & 0o777, &content);
        Ok(())
    }

    /// A program of this machine in the directory `to`, with the libraries that it loads.
    pub fn program(&mut self, name: &str, to: &str) -> Result<()> {
        let found = check(std::process::Command::new("sh").args(["-c", "command -v \"$0\"", name]));
        let path = PathBuf::from(found.with_context(|| format!("{name} is missing: `cargo xtask setup`"))?.trim());
        self.copy(&path, &format!("{to}/{name}"))?;
        // It fails, and says so, if the program is static.
        let listed = output(std::process::Command::new("ldd").arg(&path))?;
        for library in libraries(&String::from_utf8_lossy(&listed.stdout)) {
            self.copy(Path::new(library), library.trim_start_matches('/'))?;
        }
        Ok(())
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.dir(parent);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (links, size, name_size) = (1, content.len() as u32, name.len() as u32 + 1);
        // inode, mode, uid, gid, links, mtime, size, four numbers of devices, size of the name,
        // checksum
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The paths in what `ldd` prints: `libc.so.6 => /lib/libc.so.6 (0x7f...)` and
/// `/lib64/ld-linux.so.2 (0x7f...)`.
fn libraries(listed: &str) -> impl Iterator<Item = &str> {
    listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_libraries_in_what_ldd_prints() {
        let listed = "\tlinux-vdso.so.1 (0x00007f)\n\tlibz.so.1 => /lib/libz.so.1 \
            (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(libraries(listed).collect::<Vec<_>>(), ["/lib/libz.so.1", "/lib64/ld-linux-x86-64.so.2"]);
        assert_eq!(libraries("\tnot a dynamic executable\n").count(), 0);
    }

    #[test]
    fn directories_come_before_what_is_in_them_and_only_once() {
        let mut archive = Archive::default();
        archive.file("etc/deep/a", 0o644, b"abc");
        archive.file("etc/deep/b", 0o755, b"");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let at = |name: &str| text.find(&format!("{name}\0")).unwrap();
        assert!(at("etc") < at("etc/deep") && at("etc/deep") < at("etc/deep/a") && at("b") < at("TRAILER!!!"));
        assert_eq!(text.matches("070701").count(), 5);
    }
}
