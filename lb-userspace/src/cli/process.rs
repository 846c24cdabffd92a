//! Finds the API socket of an agent by its process id. The configuration file can't be used for a
//! running agent: it may have mistakes, or another `admin.socket` by now.

use std::{fs, io, path::PathBuf};

use anyhow::Context as _;

/// The unix socket that process `pid` listens on.
pub fn socket_of(pid: u32) -> anyhow::Result<PathBuf> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/unix"))
        .with_context(|| format!("cannot look for the agent's socket: is there a process {pid}?"))?;
    let inodes = sockets(pid).with_context(|| format!("cannot look into the open files of process {pid}"))?;
    listening(&table, &inodes)
        .with_context(|| format!("process {pid} listens on no unix socket: it is no agent, or begins or ends just now"))
}

/// The inodes of all sockets that the process has open.
fn sockets(pid: u32) -> io::Result<Vec<u64>> {
    let mut inodes = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A file may be closed meanwhile.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let inode =
            target.to_str().and_then(|name| name.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
        inodes.extend(inode);
    }
    Ok(inodes)
}

/// `__SO_ACCEPTCON`: it listens. Connections that were accepted have the same path.
const LISTENS: u32 = 1 << 16;

/// The path of the first listening socket among `inodes`, in the format of /proc/net/unix:
/// `Num RefCount Protocol Flags Type St Inode Path`.
fn listening(table: &str, inodes: &[u64]) -> Option<PathBuf> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(3);
        let flags = u32::from_str_radix(fields.next()?, 16).ok()?;
        let inode = fields.nth(2)?.parse::<u64>().ok()?;
        // The path may contain spaces.
        let path = line.split_once('/')?.1;
        (flags & LISTENS != 0 && inodes.contains(&inode)).then(|| PathBuf::from(format!("/{path}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_socket_of_a_process_is_found_among_others() {
        // From a Linux 6.18 machine, except for the names.
        let table = "\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 10 /run/other.sock
0000000000000000: 00000003 00000000 00000000 0001 03 11 /run/my weir/agent.sock
0000000000000000: 00000002 00000000 00000000 0002 01 12
0000000000000000: 00000002 00000000 00010000 0001 01 13 @abstract
0000000000000000: 00000002 00000000 00010000 0001 01 14 /run/my weir/agent.sock
";
        assert_eq!(listening(table, &[11, 12, 13, 14]), Some(PathBuf::from("/run/my weir/agent.sock")));
        assert_eq!(listening(table, &[11, 12, 13]), None);
        assert_eq!(listening(table, &[]), None);
    }

    #[test]
    fn socket_of_this_process_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // Other tests in this process open and close listening sockets meanwhile; leave those out.
        let table: String = fs::read_to_string("/proc/self/net/unix").unwrap();
        let ours = |line: &&str| line.starts_with("Num") || line.ends_with(path.to_str().unwrap());
        let table = table.lines().filter(ours).collect::<Vec<_>>().join("\n");
        assert_eq!(listening(&table, &sockets(std::process::id()).unwrap()), Some(path));
    }
}
