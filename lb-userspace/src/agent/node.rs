//! The state of the node: its interfaces and addresses, the hooks on them, the routes to the
//! backends. A separate task keeps this state up to date and the hooks attached, so that this work
//! never delays the task that owns the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    sync::watch,
    task::block_in_place,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    dataplane::{data_path::DataPath, hooks::Hook},
    model::{NodeSettings, Service, XdpMode},
    node::{
        changes::{Changes, News},
        genl::Genl,
        interfaces::{HookMode, Interface, Netlink, matching},
        neighbours::NextHop,
        pace::Pace,
        reach::Reach,
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
    /// What these services need of the node.
    pub fn of<'a>(node: &NodeSettings, services: impl IntoIterator<Item = &'a Service>, attach: bool) -> Self {
        let backends = services.into_iter().flat_map(|service| &service.backends);
        Self {
            interfaces: node.interfaces.clone(),
            xdp_mode: node.xdp_mode,
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
    /// Parts of the node that could not be examined, and why (their fields are then from an earlier
    /// examination), and neighbour entries that the kernel refuses.
    pub problems: Vec<String>,
}

impl Node {
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.interfaces.values().flat_map(|interface| interface.addresses.iter().copied()).collect()
    }
}

/// Starts the task on the current runtime.
pub fn start(
    data_path: DataPath,
    wanted: NodeWanted,
    shutdown: CancellationToken,
) -> anyhow::Result<(watch::Sender<NodeWanted>, watch::Receiver<Arc<Node>>)> {
    let (wanted, asked) = watch::channel(wanted);
    let (publish, node) = watch::channel(Arc::default());
    let netlink = Netlink::connect()?;
    let genl = Genl::connect().context("cannot open a generic netlink socket")?;
    let changes = Changes::watch()?;
    let now = Instant::now();
    let keeper = Keeper {
        data_path,
        reach: Reach::new(netlink.clone()),
        netlink,
        genl,
        wanted: asked,
        publish,
        node: Node::default(),
        interfaces: Look::new(now),
        routes: Look::new(now),
        neighbours: Look::new(now),
        lost: BTreeSet::new(),
        restores: Pace::new(now),
    };
    tokio::spawn(keeper.run(changes, shutdown));
    Ok((wanted, node))
}

/// Interfaces and hooks are examined this often, because a hook can be lost, and the capabilities
/// of an interface can change, without an announcement by the kernel.
const INTERFACES_EVERY: Duration = Duration::from_secs(5);
/// Routes and neighbours are examined this often. The kernel announces most of their changes; this
/// finds the others, for example an ICMP redirect.
const REACH_EVERY: Duration = Duration::from_secs(60);
/// The delay before the next attempt after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// The schedule of one kind of examination, and the problems that it found last.
struct Look {
    pace: Pace,
    /// Whether an examination has succeeded.
    is_seen: bool,
    problems: Vec<String>,
}

struct Keeper {
    data_path: DataPath,
    netlink: Netlink,
    genl: Genl,
    wanted: watch::Receiver<NodeWanted>,
    publish: watch::Sender<Arc<Node>>,
    reach: Reach,
    node: Node,
    /// Interfaces, hooks and ways out.
    interfaces: Look,
    routes: Look,
    neighbours: Look,
    /// Kept neighbours whose entries were announced as removed, or as no longer managed.
    lost: BTreeSet<NextHop>,
    /// When the lost entries may be created again.
    restores: Pace,
}

impl Keeper {
    async fn run(mut self, changes: Changes, shutdown: CancellationToken) {
        let mut changes = Some(changes);
        let mut subscribe_at = Instant::now() + RETRY;
        let mut wanted = self.wanted.borrow_and_update().clone();
        loop {
            self.catch_up(&wanted).await;
            let due = self.due();
            tokio::select! {
                // Shutdown first, then requests of the agent, then changes of the machine.
                biased;
                () = shutdown.cancelled() => return,
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    wanted = self.wanted.borrow_and_update().clone();
                    self.interfaces.pace.insist(Instant::now());
                    self.look_up_new(&wanted).await;
                }
                news = next(&mut changes, subscribe_at) => match news {
                    Some(news) => self.take(news),
                    None => {
                        changes = None;
                        if subscribe_at <= Instant::now() {
                            changes = self.subscribe();
                            subscribe_at = Instant::now() + RETRY;
                        }
                    }
                },
                () = sleep_until(due) => {}
            }
        }
    }

    fn due(&self) -> Instant {
        let mut due = self.interfaces.pace.due().min(self.routes.pace.due());
        // Without routes, no next hops are known, so there are no neighbours to examine.
        if self.routes.is_seen {
            due = due.min(self.neighbours.pace.due());
        }
        if !self.lost.is_empty() {
            due = due.min(self.restores.due());
        }
        due
    }

    /// Subscribes to the kernel's announcements again, after their socket has failed. Until that
    /// succeeds, each attempt also schedules an examination of everything.
    fn subscribe(&mut self) -> Option<Changes> {
        self.take(News::everything());
        match Changes::watch() {
            Ok(changes) => {
                warn!("the subscription to the kernel's announcements had ended; subscribed again");
                Some(changes)
            }
            Err(error) => {
                error!(%error, "the kernel's announcements cannot be followed; looking periodically");
                None
            }
        }
    }

    fn take(&mut self, news: News) {
        let now = Instant::now();
        if news.interfaces {
            self.interfaces.pace.ask(now);
        }
        if news.routes {
            self.routes.pace.ask(now);
        }
        if news.is_incomplete {
            self.neighbours.pace.ask(now);
        }
        self.lost.extend(news.neighbours.into_iter().filter(|neighbour| self.reach.keeps(neighbour)));
        if !self.lost.is_empty() {
            self.restores.ask(now);
        }
    }

    /// Does what is due, and publishes what has changed.
    async fn catch_up(&mut self, wanted: &NodeWanted) {
        if self.due() > Instant::now() {
            return;
        }
        let begun = Instant::now();
        if self.interfaces.pace.is_due(begun) {
            let result = self.look_at_interfaces(wanted).await;
            self.interfaces.looked(begun, INTERFACES_EVERY, result);
        }
        let begun = Instant::now();
        if self.routes.pace.is_due(begun) {
            let result = self.reach.look_up(&wanted.backends).await;
            self.routes.looked(begun, REACH_EVERY, result.map_err(Into::into));
            if self.reach.has_other_next_hops() {
                self.neighbours.pace.ask(Instant::now());
            }
        }
        self.publish();
        // Neighbours come last, because they matter least: the first packet to a next hop without a
        // neighbour entry goes through TC, and makes the kernel resolve the next hop.
        if self.routes.is_seen && self.keep_neighbours().await {
            self.publish();
        }
    }

    /// Looks up the routes to backends that are new in `wanted`, and no others.
    async fn look_up_new(&mut self, wanted: &NodeWanted) {
        // All routes are about to be looked up.
        if !self.routes.is_seen {
            return;
        }
        let now = Instant::now();
        match self.reach.look_up_new(&wanted.backends).await {
            Ok(_) if self.reach.has_other_next_hops() => self.neighbours.pace.ask(now),
            Ok(_) => {}
            Err(error) => {
                warn!(%error, "the routes to new backends cannot be looked up; looking up all again");
                self.routes.pace.insist(now);
            }
        }
    }

    async fn look_at_interfaces(&mut self, wanted: &NodeWanted) -> anyhow::Result<()> {
        let all = self.netlink.interfaces().await?;
        let (listed, unmet) = matching(&all, &wanted.interfaces);
        let unmet: Vec<String> = unmet.into_iter().map(str::to_owned).collect();
        for pattern in unmet.iter().filter(|pattern| !self.node.unmet.contains(pattern)) {
            warn!(pattern, "no interface fits this entry of `interfaces`; it is attached when it comes");
        }
        let hooks =
            if wanted.attach { block_in_place(|| self.data_path.sync(&listed, wanted.xdp_mode)) } else { Vec::new() };
        log_changes(&self.node.hooks, &hooks);
        self.node.unmet = unmet;
        self.node.hooks = hooks;
        self.node.lost_hooks = self.data_path.lost_hooks();
        // If interfaces have changed, routes may have changed, too. The kernel announces that, but
        // an announcement can be lost.
        if self.node.interfaces != all {
            self.routes.pace.ask(Instant::now());
            self.node.interfaces = all;
        }
        let is_native = |hook: &&Hook| hook.xdp == Some(HookMode::Native);
        let native = self.node.hooks.iter().filter(is_native).map(|hook| hook.ifindex).collect();
        let ways_out = ways_out(&self.genl, &self.node.interfaces, &native);
        self.node.ways_out = ways_out.context("cannot ask what the interfaces can do")?;
        Ok(())
    }

    /// Keeps the neighbour entries of the present next hops: examines all entries when that is due,
    /// else creates those again that were announced as lost. Returns whether it did anything.
    async fn keep_neighbours(&mut self) -> bool {
        let begun = Instant::now();
        if self.neighbours.pace.is_due(begun) {
            self.lost.clear();
            let result = self.reach.keep_neighbours().await;
            let is_ok = result.is_ok();
            let poll = if self.reach.has_refusals() { RETRY } else { REACH_EVERY };
            self.neighbours.looked(begun, poll, result.map_err(Into::into));
            if !is_ok {
                return true;
            }
        } else if !self.lost.is_empty() && self.restores.is_due(begun) {
            let lost = std::mem::take(&mut self.lost);
            self.reach.restore_neighbours(&lost).await;
            self.restores.looked(begun, Instant::now(), REACH_EVERY);
            if self.reach.has_refusals() {
                self.neighbours.pace.looked(begun, Instant::now(), RETRY);
            }
        } else {
            return false;
        }
        let problems = self.reach.problems().await;
        self.neighbours.tell(problems.unwrap_or_else(|error| vec![error.to_string()]));
        true
    }

    fn publish(&mut self) {
        self.node.is_known |= self.interfaces.is_seen && self.routes.is_seen;
        let parts = [&self.interfaces, &self.routes, &self.neighbours];
        self.node.problems = parts.into_iter().flat_map(|part| part.problems.iter().cloned()).collect();
        if self.node.routes != *self.reach.routes() {
            self.node.routes.clone_from(self.reach.routes());
        }
        self.publish.send_if_modified(|node| {
            let differs = **node != self.node;
            if differs {
                *node = Arc::new(self.node.clone());
            }
            differs
        });
    }
}

impl Look {
    const fn new(now: Instant) -> Self {
        Self { pace: Pace::new(now), is_seen: false, problems: Vec::new() }
    }

    /// Notes that an examination, which began at `begun`, has just ended. The next one is due after
    /// `poll`.
    fn looked(&mut self, begun: Instant, poll: Duration, result: anyhow::Result<()>) {
        let poll = if result.is_ok() { poll } else { RETRY };
        self.pace.looked(begun, Instant::now(), poll);
        self.is_seen |= result.is_ok();
        self.tell(result.err().map(|error| format!("{error:#}; the state known before is used")).into_iter().collect());
    }

    fn tell(&mut self, problems: Vec<String>) {
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            error!("{problem}");
        }
        self.problems = problems;
    }
}

/// The next announcements; `None` when the subscription ends, and, without a subscription, at
/// `subscribe_at`.
async fn next(changes: &mut Option<Changes>, subscribe_at: Instant) -> Option<News> {
    match changes {
        Some(changes) => changes.next().await,
        None => {
            sleep_until(subscribe_at).await;
            None
        }
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
