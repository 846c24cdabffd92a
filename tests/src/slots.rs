//! What the slots of the rings were over time, read from the pinned maps and not asked of the
//! agent: who owned them, and when they settled.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use lb_common::{
    flow::{Addr, Flow, v4_addr, v6_addr},
    hash::{HashKey, slot_of},
    slot::Slot,
};
use lb_userspace::dataplane::{
    image::{Image, Slots},
    maps::{Maps, MapsError},
    plan::address,
};

/// Looks at the rings until it is stopped.
pub struct SlotWatch {
    stop: mpsc::Sender<()>,
    thread: Option<JoinHandle<Result<SlotHistory>>>,
}

/// Shorter than any settle time: no settling is missed, as `previous` tells of it until the next
/// one.
const SAMPLE: Duration = Duration::from_millis(250);

impl SlotWatch {
    pub fn start(pin_dir: &Path) -> Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let pin_dir = pin_dir.to_owned();
        let thread = std::thread::Builder::new().name("slot watch".to_owned()).spawn(move || watch(&pin_dir, &stopped));
        Ok(Self { stop, thread: Some(thread.context("can't start the watch over the slots")?) })
    }

    pub fn stop(mut self) -> Result<SlotHistory> {
        self.end().unwrap_or_else(|| Err(anyhow!("the watch over the slots was stopped before")))
    }

    fn end(&mut self) -> Option<Result<SlotHistory>> {
        // It may have ended by itself, with an error.
        self.stop.send(()).ok();
        let joined = self.thread.take()?.join();
        Some(joined.unwrap_or_else(|_| Err(anyhow!("the watch over the slots panicked"))))
    }
}

impl Drop for SlotWatch {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.end() {
            eprintln!("warning: {error:#}");
        }
    }
}

/// How many slots there are, of all VIPs of the pinned data path, and how many of them are in
/// transition now.
pub fn in_transition(pin_dir: &Path) -> Result<(usize, usize)> {
    let slots: Vec<Slot> = read(pin_dir)?.1.into_values().flatten().collect();
    Ok((slots.len(), slots.iter().filter(|slot| slot.in_transition()).count()))
}

/// How many slots do not stand with one owner and without a flag.
pub fn unsettled(pin_dir: &Path) -> Result<usize> {
    Ok(read(pin_dir)?.1.into_values().flatten().filter(|slot| !slot.is_settled()).count())
}

/// The slots of each ring, by the ring's offset in the arena.
pub type RingSlots = BTreeMap<u32, Vec<Slot>>;

/// What the pinned maps hold, and the slots.
pub fn read(pin_dir: &Path) -> Result<(Image, RingSlots)> {
    let look = || look(&Maps::open(pin_dir)?);
    look().with_context(|| format!("can't read the maps in {}", pin_dir.display()))
}

fn look(maps: &Maps) -> Result<(Image, RingSlots), MapsError> {
    let image = maps.read()?;
    let ranges = image.ranges();
    let rings = ranges.into_iter().map(|(offset, len)| (offset, maps.slots().range(offset, len))).collect();
    Ok((image, rings))
}

/// What was seen of the rings.
#[derive(Default)]
pub struct SlotHistory {
    key: Option<HashKey>,
    /// Offset and length of the ring of a VIP.
    rings: BTreeMap<SocketAddr, (u32, u32)>,
    /// By place in the arena: whose the slot was when its owners last agreed.
    agreed: BTreeMap<u32, Vec<Agreed>>,
    slots: usize,
    settlings: usize,
    /// Looks at which some slots had settled on another owner since the one before.
    times_settled: usize,
    /// Of each look: slots in transition.
    in_transition: Vec<usize>,
    /// Of the last look.
    last: BTreeMap<u32, Slot>,
    /// When the last look began.
    looked_at: Option<Instant>,
}

/// The owners of a slot agreed on one; that happened at some time between two looks.
struct Agreed {
    after: Instant,
    seen: Instant,
    owner: Option<SocketAddr>,
}

impl SlotHistory {
    /// Whether the slot of this flow was `backend`'s, both owners or the one before, and settled on
    /// another one later, all of it between the two times, as far as looks can tell: a slot that
    /// was seen settled may have settled right after the look before. A flow that was opened while
    /// its slot was in transition has an entry, which outlives settling.
    pub fn settled_elsewhere(
        &self,
        client: SocketAddr,
        vip: SocketAddr,
        backend: SocketAddr,
        from: Instant,
        to: Instant,
    ) -> bool {
        let Some(slot) = self.slot(client, vip) else { return false };
        let owners = self.agreed.get(&slot).map(Vec::as_slice).unwrap_or_default();
        let at_begin = owners.iter().rposition(|one| one.seen <= from).unwrap_or_default();
        let mut meanwhile = owners[at_begin..].iter().take_while(|one| one.after < to).map(|one| one.owner);
        meanwhile.any(|owner| owner == Some(backend)) && meanwhile.any(|owner| owner != Some(backend))
    }

    /// The previous owners that the slot of this flow was seen with, and between which seconds from
    /// `from` each of them became that.
    pub fn told(&self, client: SocketAddr, vip: SocketAddr, from: Instant) -> String {
        let Some(slot) = self.slot(client, vip) else { return "its VIP has no ring".to_owned() };
        let seconds = |at: Instant| match at.checked_duration_since(from) {
            Some(later) => later.as_secs_f64(),
            None => -from.duration_since(at).as_secs_f64(),
        };
        let Some(agreed) = self.agreed.get(&slot) else { return format!("its slot {slot} was never seen") };
        let owners = agreed.iter().map(|one| {
            let owner = one.owner.map_or_else(|| "nobody".to_owned(), |owner| owner.to_string());
            format!("{:.3} to {:.3} s: {owner}", seconds(one.after), seconds(one.seen))
        });
        format!("the previous owners of its slot {slot}: {}", owners.collect::<Vec<_>>().join(", "))
    }

    /// Its place in the arena.
    fn slot(&self, client: SocketAddr, vip: SocketAddr) -> Option<u32> {
        let (offset, len) = self.rings.get(&vip)?;
        let key = self.key.as_ref()?;
        let (src_port_be, dst_port_be) = (client.port().to_be(), vip.port().to_be());
        let hash = match (client, vip) {
            (SocketAddr::V4(src), SocketAddr::V4(dst)) => {
                let flow = Flow { src: v4_addr(*src.ip()), dst: v4_addr(*dst.ip()), src_port_be, dst_port_be };
                Addr::hash_flow(key, &flow)
            }
            (SocketAddr::V6(src), SocketAddr::V6(dst)) => {
                let flow = Flow { src: v6_addr(*src.ip()), dst: v6_addr(*dst.ip()), src_port_be, dst_port_be };
                Addr::hash_flow(key, &flow)
            }
            _ => return None,
        };
        Some(offset + slot_of(hash, *len))
    }

    /// How often a slot settled on another owner, on average.
    pub fn settlings_per_slot(&self) -> f64 {
        self.settlings as f64 / self.slots.max(1) as f64
    }

    /// How often some slots settled on another owner, as looks tell it.
    pub const fn times_settled(&self) -> usize {
        self.times_settled
    }

    /// For people.
    pub fn summary(&self) -> String {
        let most = self.in_transition.iter().max().copied().unwrap_or_default();
        let mean = self.in_transition.iter().sum::<usize>() as f64 / self.in_transition.len().max(1) as f64;
        let share = |slots: f64| 100.0 * slots / self.slots.max(1) as f64;
        format!(
            "{} slots: each settled on another owner {:.1} times, some of them at {} moments; in transition {:.0} % \
            on average, {:.0} % at the most",
            self.slots,
            self.settlings_per_slot(),
            self.times_settled,
            share(mean),
            share(most as f64)
        )
    }

    /// Takes what a look brought that began and ended at these times.
    fn take(&mut self, image: &Image, rings: &RingSlots, [begun, ended]: [Instant; 2]) {
        let after = self.looked_at.replace(begun).unwrap_or(begun);
        self.key = image.settings.map(|settings| settings.hash_key);
        self.rings =
            image.services.iter().map(|(vip, service)| (*vip, (service.ring_offset, service.ring_len))).collect();
        let places = rings.iter().flat_map(|(offset, ring)| (*offset..).zip(ring.iter().copied()));
        let (mut slots, mut in_transition, before_this) = (0, 0, self.settlings);
        for (place, slot) in places {
            slots += 1;
            in_transition += usize::from(slot.in_transition());
            let before = self.last.insert(place, slot);
            if before.is_some_and(|before| before.previous() == slot.previous()) {
                continue;
            }
            self.settlings += usize::from(before.is_some());
            let owner = image.backends.get(&slot.previous()).and_then(address);
            self.agreed.entry(place).or_default().push(Agreed { after, seen: ended, owner });
        }
        self.slots = slots;
        self.times_settled += usize::from(self.settlings > before_this);
        self.in_transition.push(in_transition);
    }
}

fn watch(pin_dir: &Path, stopped: &mpsc::Receiver<()>) -> Result<SlotHistory> {
    let maps = Maps::open(pin_dir).with_context(|| format!("can't open the maps in {}", pin_dir.display()))?;
    let mut history = SlotHistory::default();
    let mut is_last = false;
    loop {
        let begun = Instant::now();
        let (image, rings) = look(&maps).context("can't read the maps")?;
        history.take(&image, &rings, [begun, Instant::now()]);
        if is_last {
            return Ok(history);
        }
        // After the stop, the last look finds the slots that have settled since the one before.
        is_last = !matches!(stopped.recv_timeout(SAMPLE), Err(mpsc::RecvTimeoutError::Timeout));
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{backend::Backend, flow::any_addr};

    use super::*;

    #[test]
    fn slot_that_settled_on_another_owner_is_told_from_one_that_only_left_its_own() {
        let (own, other): (SocketAddr, SocketAddr) = ("10.2.0.1:80".parse().unwrap(), "10.2.0.2:80".parse().unwrap());
        let client: SocketAddr = "10.1.0.2:2048".parse().unwrap();
        let vip: SocketAddr = "192.0.2.10:80".parse().unwrap();
        let mut history = SlotHistory { key: Some(HashKey::from_seed([1; 16])), ..SlotHistory::default() };
        let mut image = Image::default();
        for (index, one) in [(1, own), (2, other)] {
            let entry =
                Backend { address: any_addr(one.ip()), port_be: one.port().to_be(), family: 4, ..Backend::FREE };
            image.backends.insert(index, entry);
        }
        let start = Instant::now();
        let look = |history: &mut SlotHistory, slot: Slot, second: u64| {
            let rings = RingSlots::from([(7, vec![slot])]);
            history.take(&image, &rings, [start + Duration::from_secs(second); 2]);
            history.key = Some(HashKey::from_seed([1; 16]));
            history.rings.insert(vip, (7, 1));
        };
        let at = |second: u64| start + Duration::from_secs(second);
        look(&mut history, Slot::settled(1), 0);
        look(&mut history, Slot::new(2, 1, 0), 1);
        assert!(!history.settled_elsewhere(client, vip, own, at(0), at(9)), "in transition, not settled");
        look(&mut history, Slot::settled(2), 2);
        look(&mut history, Slot::settled(1), 5);
        assert!(history.settled_elsewhere(client, vip, own, at(0), at(9)));
        assert!(
            !history.settled_elsewhere(client, vip, own, at(3), at(9)),
            "opened when it was not its backend's: it has an entry"
        );
        assert!(!history.settled_elsewhere(client, vip, own, at(0), at(1)), "ended before");
        let between = at(1) + Duration::from_millis(1);
        assert!(history.settled_elsewhere(client, vip, own, at(0), between), "it may have settled by then");
        assert_eq!(history.settlings, 2);
    }
}
