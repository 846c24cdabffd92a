//! Weir's programs, loaded without pins, and what the agent would have written into their maps.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRun, TestRunOptions,
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::Xdp,
};
use lb_common::{
    backend::Backend,
    filter::{self, FILTER_SHIFT, FILTER_WORDS},
    flow::{AnyAddr, Family, any_addr, v4_addr, v6_addr},
    hash::HashKey,
    limits::{WAY_OUT_REDIRECT, map, program},
    nat::NatTimeouts,
    ports::PortPool,
    service::{Service, VipKey, address},
    settings::{LAYOUT, Settings},
    slot::Slot,
    verdict::{Reason, verdict_index},
};

use crate::{
    cases::Mode,
    network::{BACKENDS, backend, node, vip},
};

/// The default of a service from a file.
const RING_LEN: u32 = 16_381;
/// What a few services of DSR modes leave empty, whatever their traffic.
const FEW: u32 = 8;
const UNUSED: [(&str, u32); 6] = [
    (map::RINGS, FEW * RING_LEN.next_power_of_two()),
    (map::SLOT_TIMES, FEW * RING_LEN.next_power_of_two() / 2),
    (map::NAT_ESTABLISHED_V4, 64),
    (map::NAT_ESTABLISHED_V6, 64),
    (map::NAT_HALF_OPEN_V4, 64),
    (map::NAT_HALF_OPEN_V6, 64),
];
const SECOND: u64 = 1_000_000_000;

pub struct Stage {
    ebpf: Ebpf,
    ifindex: u32,
    rings: Array<MapData, u64>,
    backends: Array<MapData, Backend>,
    verdicts: PerCpuArray<MapData, u64>,
    services: u32,
}

/// An object that xtask has built.
pub fn object(name: &str) -> Result<PathBuf> {
    let object = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf").join(name);
    if !object.exists() {
        bail!("{} doesn't exist: run this by `cargo xtask bench packet`, which builds it", object.display());
    }
    Ok(object)
}

impl Stage {
    /// With every map as large as the agent makes it.
    pub fn load(ifindex: u32) -> Result<Self> {
        Self::load_with(ifindex, &[])
    }

    /// Lets XDP redirect to an interface.
    pub fn open_way_out(&mut self, ifindex: u32) -> Result<()> {
        self.insert(map::WAYS_OUT, ifindex, WAY_OUT_REDIRECT)
    }

    /// With no more room than a few services of DSR modes use.
    pub fn load_for_few(ifindex: u32) -> Result<Self> {
        Self::load_with(ifindex, &UNUSED)
    }

    fn load_with(ifindex: u32, sizes: &[(&'static str, u32)]) -> Result<Self> {
        let object = object("weir.bpf.o")?;
        let mut loader = EbpfLoader::new();
        loader.override_global("AYA_LOG_LEVEL", &0_u8, false);
        for (name, size) in sizes {
            loader.map_max_entries(name, *size);
        }
        let mut ebpf = loader.load_file(&object).with_context(|| format!("can't load {}", object.display()))?;
        xdp(&mut ebpf, program::XDP)?.load().context("the kernel refuses weir_xdp")?;
        let mut stage = Self {
            ifindex,
            rings: take(&mut ebpf, map::RINGS)?,
            backends: take(&mut ebpf, map::BACKENDS)?,
            verdicts: take(&mut ebpf, map::VERDICTS)?,
            services: 0,
            ebpf,
        };
        let mut settings: Array<_, Settings> = take(&mut stage.ebpf, map::SETTINGS)?;
        settings.set(0, settings_of_agent(), 0)?;
        let mut snat: Array<_, AnyAddr> = take(&mut stage.ebpf, map::SNAT_ADDRESSES)?;
        for family in Family::BOTH {
            snat.set(snat_first(family).into(), any_addr(node(family)), 0)?;
            stage.set_address(node(family), address::SNAT)?;
        }
        stage.open_way_out(ifindex)?;
        Ok(stage)
    }

    /// Adds a service over backends of its own, with `transition` percent of its slots in
    /// transition; returns its VIP.
    pub fn serve(&mut self, mode: &Mode, family: Family, transition: u32) -> Result<SocketAddr> {
        let number = self.services;
        self.services += 1;
        let first = 1 + number * u32::from(BACKENDS);
        for nth in 1..=BACKENDS {
            self.backends.set(first + u32::from(nth) - 1, entry(mode, family, nth, number), 0)?;
        }
        let ring_offset = number * RING_LEN.next_power_of_two();
        for slot in 0..RING_LEN {
            let owner = |turn: u32| first + turn % u32::from(BACKENDS);
            // Every tenth run of ten slots, one of each backend, for each ten percent.
            let in_transition = slot / 10 % 10 < transition / 10;
            let word =
                if in_transition { Slot::new(owner(slot), owner(slot + 1), 0) } else { Slot::settled(owner(slot)) };
            self.rings.set(ring_offset + slot, word.0, 0)?;
        }
        let service = Service {
            ring_offset,
            ring_len: RING_LEN,
            id: number + 1,
            stats: number + 1,
            flags: 0,
            mode: mode.service,
            reserved: [0; 3],
            draining_since_ns: 0,
        };
        let vip = vip(family, u8::try_from(number)?);
        match vip.ip() {
            std::net::IpAddr::V4(ip) => {
                self.insert(map::SERVICES_V4, VipKey::tcp(v4_addr(ip), vip.port().to_be()), service)
            }
            std::net::IpAddr::V6(ip) => {
                self.insert(map::SERVICES_V6, VipKey::tcp(v6_addr(ip), vip.port().to_be()), service)
            }
        }?;
        let epoch = self.ebpf.map_mut(map::SERVICES_EPOCH).context("the object has no epoch of services")?;
        Array::<_, u64>::try_from(epoch)?.set(0, u64::from(self.services), 0)?;
        self.set_address(vip.ip(), address::VIP)?;
        Ok(vip)
    }

    fn set_address(&mut self, ip: std::net::IpAddr, bits: u32) -> Result<()> {
        let (known, bit) = match ip {
            std::net::IpAddr::V4(ip) => filter::place(&v4_addr(ip), FILTER_SHIFT),
            std::net::IpAddr::V6(ip) => filter::place(&v6_addr(ip), FILTER_SHIFT),
        };
        let map = self.ebpf.map_mut(map::ADDRESS_FILTER).context("the object has no filter of addresses")?;
        let mut filter = Array::<_, u64>::try_from(map)?;
        for word in 0..FILTER_WORDS {
            // As the agent leaves it: nobody but the addresses that are known gets through.
            let before = filter.get(&word, 0)?;
            let before = if before == 0 { u64::MAX } else { before };
            filter.set(word, if word == known { before & !bit } else { before }, 0)?;
        }
        match ip {
            std::net::IpAddr::V4(ip) => self.insert(map::ADDRESSES_V4, v4_addr(ip), bits),
            std::net::IpAddr::V6(ip) => self.insert(map::ADDRESSES_V6, v6_addr(ip), bits),
        }
    }

    fn insert<K: Pod, V: Pod>(&mut self, name: &str, key: K, value: V) -> Result<()> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))?;
        let mut map: HashMap<_, K, V> = map.try_into().with_context(|| format!("{name} is another kind of map"))?;
        map.insert(key, value, 0).with_context(|| format!("can't write to {name}"))
    }

    /// The program, to attach it.
    pub fn program_mut(&mut self) -> Result<&mut Xdp> {
        xdp(&mut self.ebpf, program::XDP)
    }

    pub fn program(&self) -> Result<&Xdp> {
        let program = self.ebpf.program(program::XDP).context("the object has no weir_xdp")?;
        program.try_into().context("weir_xdp is another kind of program")
    }

    /// How often `reason` was counted.
    pub fn counted(&self, reason: Reason) -> Result<u64> {
        let counts =
            self.verdicts.get(&verdict_index(self.ifindex, reason as u32), 0).context("can't read VERDICTS")?;
        Ok(counts.iter().sum())
    }

    /// Shows the program one frame; what it sends for that.
    pub fn show(&self, frame: &[u8]) -> Result<Vec<u8>> {
        let mut out = vec![0; frame.len() + 64];
        let ran = self.program()?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context(self.ifindex, frame.len() as u32)),
            ..TestRunOptions::default()
        })?;
        out.truncate(ran.data_size_out as usize);
        if ran.return_value != action::TX {
            bail!("weir_xdp returned {} for a packet that it should send on", ran.return_value);
        }
        Ok(out)
    }
}

/// `enum xdp_action`.
pub mod action {
    pub const PASS: u32 = 2;
    pub const TX: u32 = 3;
}

/// `xdp_md` of a frame that came in through an interface.
pub fn context(ifindex: u32, len: u32) -> Vec<u8> {
    [0, len, 0, ifindex, 0, 0].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect()
}

pub fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    program.try_into().with_context(|| format!("{name} is not an XDP program"))
}

pub fn take<M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<M> {
    let map = ebpf.take_map(name).with_context(|| format!("the object has no map {name}"))?;
    map.try_into().with_context(|| format!("{name} is another kind of map"))
}

fn entry(mode: &Mode, family: Family, nth: u8, service: u32) -> Backend {
    let address = backend(family, nth);
    let mut entry = Backend {
        flags: Backend::FLAG_SERVING,
        generation: 1,
        service: service + 1,
        port_be: address.port().to_be(),
        family: family.number(),
        way: match family {
            Family::V4 => mode.way_v4,
            Family::V6 => mode.way_v6,
        },
        address: any_addr(address.ip()),
        snat_first: snat_first(family),
        snat_count: 1,
        ..Backend::FREE
    };
    if mode.encapsulates {
        entry.tunnel = entry.address;
        entry.tunnel_source = any_addr(node(family));
    }
    entry
}

const fn snat_first(family: Family) -> u16 {
    family.number() as u16
}

fn settings_of_agent() -> Settings {
    Settings {
        hash_key: HashKey::from_seed(*b"a seed of bench!"),
        nat_timeouts: NatTimeouts {
            half_open_ns: 600 * SECOND,
            established_ns: 7200 * SECOND,
            closing_ns: 60 * SECOND,
        },
        ports: PortPool::new([(1024, 32_767), (61_000, 65_535)], 12_345),
        flags: 0,
        layout: LAYOUT,
        vary_source_v4: 0,
        vary_source_v6: 0,
    }
}
