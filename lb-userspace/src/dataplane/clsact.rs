//! The clsact qdisc, which holds the TC filters where the kernel has no tcx links.

use std::{io, path::Path, thread};

use aya::maps::{MapData, MapType};
use futures_util::TryStreamExt;
use rtnetlink::{Handle, packet_route::tc::TcHandle};

/// Pins the mark that Weir has added the qdisc: an unused array, because a pinned program would
/// keep its maps alive.
pub fn mark(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let word = size_of::<u32>() as u32;
    let definition = aya_obj::Map::new_from_params(MapType::Array as u32, word, word, 1, 0);
    let map = MapData::create(definition, "weir_clsact", None).map_err(io::Error::other)?;
    map.pin(path).map_err(io::Error::other)
}

/// Removes the qdisc from an interface if it holds no filter; returns whether it is gone.
pub fn remove_if_empty(ifindex: u32) -> io::Result<bool> {
    // Runs on its own thread, because the caller may be a task of another event loop. The thread is
    // in the caller's network namespace.
    let work = || -> io::Result<bool> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            remove(&handle, ifindex.cast_signed()).await
        })
    };
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn remove(handle: &Handle, ifindex: i32) -> io::Result<bool> {
    let filters = || handle.traffic_filter(ifindex).get();
    let ingress: Vec<_> = filters().ingress().execute().try_collect().await.map_err(io::Error::other)?;
    let egress: Vec<_> = filters().egress().execute().try_collect().await.map_err(io::Error::other)?;
    if !ingress.is_empty() || !egress.is_empty() {
        return Ok(false);
    }
    let mut request = handle.qdisc().del(ifindex);
    request.message_mut().header.parent = TcHandle::CLSACT;
    request.message_mut().header.handle = TcHandle { major: 0xffff, minor: 0 };
    match request.execute().await {
        Err(rtnetlink::Error::NetlinkError(error)) if is_absent(error.raw_code()) => Ok(true),
        result => result.map(|()| true).map_err(io::Error::other),
    }
}

/// Whether the error code means that the interface has no such qdisc.
fn is_absent(code: i32) -> bool {
    [libc::ENOENT, libc::EINVAL].contains(&-code)
}
