//! Nothing stays behind: beds are removed when they are dropped, on Ctrl-C, and by the next run if
//! a run was killed.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::process::check;

/// The beds of this process that have not been removed.
static LIVING: Mutex<Vec<String>> = Mutex::new(Vec::new());
static WATCH: Once = Once::new();
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The name of a bed: `t<pid>x<number>`. Its namespaces are `weir-<id>-<role>`, its files are in
/// `/run/weir-<id>`.
pub fn new_id() -> Result<String> {
    if !nix::unistd::geteuid().is_root() {
        bail!("needs root: it makes network namespaces, mounts a bpffs and loads BPF programs");
    }
    WATCH.call_once(|| {
        remove_dead();
        std::thread::spawn(remove_on_signal);
    });
    let id = format!("t{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    living().push(id.clone());
    Ok(id)
}

pub fn run_dir(id: &str) -> PathBuf {
    PathBuf::from(format!("/run/weir-{id}"))
}

/// Lets the bed outlive this process, until [`remove_kept`].
pub fn keep(id: &str) -> Result<()> {
    let mark = run_dir(id).join(KEPT);
    fs::write(&mark, "").with_context(|| format!("can't write {}", mark.display()))?;
    living().retain(|living| living != id);
    Ok(())
}

/// Removes the beds that were kept; returns their ids.
pub fn remove_kept() -> Result<Vec<String>> {
    let kept: Vec<String> = ids().into_iter().filter(|id| is_kept(id)).collect();
    kept.iter().try_for_each(|id| remove(id))?;
    Ok(kept)
}

/// Ends the bed's processes, removes its namespaces, mount and files. Does as much as it can; says
/// what it could not.
pub fn remove(id: &str) -> Result<()> {
    living().retain(|living| living != id);
    let mut problems = Vec::new();
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            problems.push(format!("{error:#}"));
        }
    };
    let namespaces = namespaces_of(id);
    for name in &namespaces {
        note(kill_processes_in(name));
    }
    let bpf = run_dir(id).join("bpf");
    if bpf.exists() {
        // EINVAL: it is not mounted.
        match umount2(&bpf, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
            Err(error) => note(Err(error).with_context(|| format!("can't unmount {}", bpf.display()))),
        }
    }
    for name in &namespaces {
        note(check(Command::new("ip").args(["netns", "del", name])).map(drop));
    }
    if run_dir(id).exists() {
        note(fs::remove_dir_all(run_dir(id)).with_context(|| format!("can't remove {}", run_dir(id).display())));
    }
    if !problems.is_empty() {
        bail!("the bed {id} was not removed whole: {}", problems.join("; "));
    }
    Ok(())
}

const KEPT: &str = "kept";

fn living() -> std::sync::MutexGuard<'static, Vec<String>> {
    LIVING.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn is_kept(id: &str) -> bool {
    run_dir(id).join(KEPT).exists()
}

/// Removes what processes that are gone have left.
fn remove_dead() {
    let dead = |id: &String| {
        let pid = id.trim_start_matches('t').split('x').next().unwrap_or_default();
        // A zombie has no executable any more.
        fs::read_link(Path::new("/proc").join(pid).join("exe")).is_err()
    };
    for id in ids().into_iter().filter(|id| dead(id) && !is_kept(id)) {
        match remove(&id) {
            Ok(()) => eprintln!("removed the bed {id} that a killed run had left"),
            Err(error) => eprintln!("warning: {error:#}"),
        }
    }
}

fn remove_on_signal() {
    if let Err(error) = wait_for_signal() {
        eprintln!("warning: Ctrl-C will leave the bed to the next run to remove: {error:#}");
        return;
    }
    eprintln!("interrupted; removing the bed");
    let ids = living().clone();
    for id in ids {
        if let Err(error) = remove(&id) {
            eprintln!("warning: {error:#}");
        }
    }
    std::process::exit(130);
}

fn wait_for_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        tokio::select! {
            interrupt = tokio::signal::ctrl_c() => interrupt?,
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        Ok(())
    })
}

/// The beds that left a trace on this machine.
fn ids() -> Vec<String> {
    let names = |dir: &str| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let mut ids: Vec<String> =
        names("/run/netns").iter().chain(&names("/run")).filter_map(|name| id_in(name)).collect();
    ids.sort();
    ids.dedup();
    ids
}

/// The id in `weir-t12x0-client` or `weir-t12x0`; only names that are surely ours.
fn id_in(name: &str) -> Option<String> {
    let id = name.strip_prefix("weir-")?.split('-').next()?;
    let (pid, number) = id.strip_prefix('t')?.split_once('x')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(pid) && digits(number)).then(|| id.to_owned())
}

fn namespaces_of(id: &str) -> Vec<String> {
    let prefix = format!("weir-{id}-");
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

fn kill_processes_in(namespace: &str) -> Result<()> {
    let path = Path::new("/run/netns").join(namespace);
    let inode = fs::metadata(&path).with_context(|| format!("can't look at {}", path.display()))?.ino();
    for round in 0..100 {
        let mut any = false;
        for entry in fs::read_dir("/proc").context("can't read /proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            // A process that ends meanwhile has no namespace any more.
            let Ok(net) = fs::metadata(entry.path().join("ns/net")) else { continue };
            if net.ino() == inode && pid != std::process::id().cast_signed() {
                any = true;
                match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                    Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                    Err(error) => bail!("can't kill process {pid} in {namespace}: {error}"),
                }
            }
        }
        if !any {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5 + round));
    }
    bail!("processes in {namespace} don't end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own_names_and_no_others() {
        assert_eq!(id_in("weir-t12x0-client").as_deref(), Some("t12x0"));
        assert_eq!(id_in("weir-t12x34").as_deref(), Some("t12x34"));
        for foreign in ["weir-client", "weir-t12", "weir-tx1", "weir-t1x-lb", "weird-t1x1", "t1x1", "weir-test"] {
            assert_eq!(id_in(foreign), None, "{foreign}");
        }
    }
}
