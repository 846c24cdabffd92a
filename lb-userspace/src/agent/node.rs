//! The state of the node: its interfaces and addresses, the hooks on them, the routes to the
//! backends. A separate task keeps this state up to date and the hooks attached, so that this work
//! never delays the task that owns the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{sync::watch, task::block_in_place, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    dataplane::{data_path::DataPath, hooks::Hook},
    model::{Config, XdpMode},
    node::{
        genl::Genl,
        interfaces::{self, HookMode, Interface, Netlink, matching},
        neighbours::NextHop,
        routes::Route,
        ways_out::ways_out,
    },
};

/// What the agent wants from the node task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeWanted {
    /// Names or globs.
    pub interfaces: Vec<String>,
    pub xdp_mode: XdpMode,
    /// Addresses of the backends and of their tunnel endpoints.
    pub backends: BTreeSet<IpAddr>,
    /// Whether to attach the hooks; true only once the maps are in the desired state.
    pub attach: bool,
}

impl NodeWanted {
    pub fn of(config: &Config, attach: bool) -> Self {
        let backends = config.services.iter().flat_map(|service| &service.backends);
        Self {
            interfaces: config.node.interfaces.clone(),
            xdp_mode: config.node.xdp_mode,
            backends: backends.flat_map(|backend| [Some(backend.address.ip()), backend.tunnel]).flatten().collect(),
            attach,
        }
    }
}

/// The actual state of the node.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Node {
    /// False until the node has been examined once.
    pub is_known: bool,
    pub interfaces: BTreeMap<u32, Interface>,
    /// Patterns of the configuration that match no interface.
    pub unmet: Vec<String>,
    pub hooks: Vec<Hook>,
    pub lost_hooks: u64,
    pub ways_out: BTreeMap<u32, u32>,
    pub routes: BTreeMap<IpAddr, Route>,
    /// Why the node could not be examined; the other fields are then from an earlier examination.
    pub error: Option<String>,
}

impl Node {
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.interfaces.values().flat_map(|interface| interface.addresses.iter().copied()).collect()
    }
}

/// Starts the task on the current runtime.
pub fn start(
    data_path: DataPath,
    config: &Config,
    shutdown: CancellationToken,
) -> anyhow::Result<(watch::Sender<NodeWanted>, watch::Receiver<Node>)> {
    let (wanted, asked) = watch::channel(NodeWanted::of(config, false));
    let (publish, node) = watch::channel(Node::default());
    let netlink = Netlink::connect()?;
    let genl = Genl::connect().context("cannot open a generic netlink socket")?;
    let changes = interfaces::watch()?;
    let keeper = Keeper { data_path, netlink, genl, wanted: asked, publish, node: Node::default() };
    tokio::spawn(keeper.run(changes, shutdown));
    Ok((wanted, node))
}

/// Hooks can be lost and routes can change without any watched event.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Interfaces seldom change one at a time.
const QUIET: Duration = Duration::from_millis(20);

struct Keeper {
    data_path: DataPath,
    netlink: Netlink,
    genl: Genl,
    wanted: watch::Receiver<NodeWanted>,
    publish: watch::Sender<Node>,
    node: Node,
}

impl Keeper {
    async fn run(mut self, mut changes: tokio::sync::mpsc::Receiver<()>, shutdown: CancellationToken) {
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            self.look(&wanted).await;
            self.publish.send_if_modified(|node| {
                let differs = *node != self.node;
                node.clone_from(&self.node);
                differs
            });
            tokio::select! {
                // Shutdown first; then the wishes of the agent, before changes of the interfaces.
                biased;
                () = shutdown.cancelled() => return,
                changed = self.wanted.changed() => if changed.is_err() { return },
                Some(()) = changes.recv() => sleep(QUIET).await,
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn look(&mut self, wanted: &NodeWanted) {
        let result = self.find_out(wanted).await;
        let error = result.err().map(|error| format!("{error:#}"));
        if let Some(error) = error.as_ref().filter(|error| self.node.error.as_ref() != Some(error)) {
            error!(error, "cannot find out what the node is like; what was known before holds");
        }
        self.node.error = error;
    }

    async fn find_out(&mut self, wanted: &NodeWanted) -> anyhow::Result<()> {
        let all = self.netlink.interfaces().await?;
        let (listed, unmet) = matching(&all, &wanted.interfaces);
        let unmet: Vec<String> = unmet.into_iter().map(str::to_owned).collect();
        for pattern in unmet.iter().filter(|pattern| !self.node.unmet.contains(pattern)) {
            warn!(pattern, "no interface fits this entry of `interfaces`; it is attached when it comes");
        }
        let hooks =
            if wanted.attach { block_in_place(|| self.data_path.sync(&listed, wanted.xdp_mode)) } else { Vec::new() };
        log_changes(&self.node.hooks, &hooks);
        let is_native = |hook: &&Hook| hook.xdp == Some(HookMode::Native);
        let native = hooks.iter().filter(is_native).map(|hook| hook.ifindex).collect();
        let ways_out = ways_out(&self.genl, &all, &native).context("cannot ask what the interfaces can do")?;
        let mut routes = BTreeMap::new();
        for address in &wanted.backends {
            match self.netlink.route_to(*address).await? {
                Some(route) => drop(routes.insert(*address, route)),
                None if !self.node.is_known || self.node.routes.contains_key(address) => {
                    warn!(backend = %address, "there is no route to this backend");
                }
                None => {}
            }
        }
        let next_hops: BTreeSet<NextHop> = routes
            .iter()
            .filter(|(_, route)| !route.is_local)
            .map(|(address, route)| (route.ifindex, route.next_hop(*address)))
            .collect();
        self.node = Node {
            is_known: true,
            interfaces: all,
            unmet,
            hooks,
            lost_hooks: self.data_path.lost_hooks(),
            ways_out,
            routes,
            error: None,
        };
        // Last, because it matters least: a next hop whose neighbour entry is not kept is resolved
        // by the first packet, which goes through TC.
        self.netlink.keep_neighbours(&next_hops).await?;
        Ok(())
    }
}

fn log_changes(before: &[Hook], after: &[Hook]) {
    for hook in after {
        let was = before.iter().find(|was| was.ifindex == hook.ifindex);
        if was == Some(hook) {
            continue;
        }
        let mode = hook.xdp.map_or("none", |mode| mode.name());
        if hook.problem.is_empty() {
            info!(interface = hook.name, xdp = mode, tc = hook.tc.name(), "attached");
        } else {
            error!(
                interface = hook.name,
                xdp = mode,
                tc = hook.tc.name(),
                problem = hook.problem,
                "not attached as it should be"
            );
        }
    }
    for hook in before.iter().filter(|hook| !after.iter().any(|now| now.ifindex == hook.ifindex)) {
        info!(interface = hook.name, "no longer attached: the interface is gone or left the configuration");
    }
}
