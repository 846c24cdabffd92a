//! Two queries over generic netlink: the XDP features of an interface, and its active offloads. The
//! kernel answers at once, so the socket blocks.

use std::{collections::BTreeSet, io};

use rtnetlink::{
    packet_core::{
        DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
        NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC},
};

/// `NETDEV_XDP_ACT_*`: the XDP features of an interface, from Linux 6.3 on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct XdpFeatures(u64);

impl XdpFeatures {
    /// The driver can run XDP programs.
    pub const fn has_native(self) -> bool {
        self.0 & 1 != 0
    }

    /// Packets can be redirected to the interface in its current state; for a veth this means that
    /// its other end accepts them.
    pub const fn can_be_redirected_to(self) -> bool {
        self.0 & 4 != 0
    }
}

/// A socket to the kernel's generic netlink families `netdev` and `ethtool`.
pub struct Genl {
    socket: Socket,
    netdev: Option<u16>,
    ethtool: Option<u16>,
}

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;

impl Genl {
    pub fn connect() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut genl = Self { socket, netdev: None, ethtool: None };
        genl.netdev = genl.family("netdev")?;
        genl.ethtool = genl.family("ethtool")?;
        Ok(genl)
    }

    /// `None` on kernels that don't report the features.
    pub fn xdp_features(&self, ifindex: u32) -> io::Result<Option<XdpFeatures>> {
        let Some(family) = self.netdev else { return Ok(None) };
        let index = DefaultNla::new(NETDEV_A_DEV_IFINDEX, ifindex.to_ne_bytes().to_vec());
        let answer = self.ask(family, NETDEV_CMD_DEV_GET, vec![index])?;
        let features = attribute(&answer, NETDEV_A_DEV_XDP_FEATURES);
        Ok(features.and_then(|bytes| bytes.try_into().ok()).map(|bytes| XdpFeatures(u64::from_ne_bytes(bytes))))
    }

    /// The names of the active offloads, as the kernel names them and `ethtool -k` shows them:
    /// `rx-gro`, `rx-lro`, ...; `None` on kernels that don't report them.
    pub fn offloads(&self, ifindex: u32) -> io::Result<Option<BTreeSet<String>>> {
        let Some(family) = self.ethtool else { return Ok(None) };
        let mut header = vec![0; 8];
        DefaultNla::new(ETHTOOL_A_HEADER_DEV_INDEX, ifindex.to_ne_bytes().to_vec()).emit(&mut header);
        let header = DefaultNla::new(ETHTOOL_A_FEATURES_HEADER | NLA_F_NESTED, header);
        let answer = self.ask(family, ETHTOOL_MSG_FEATURES_GET, vec![header])?;
        let bits = attribute(&answer, ETHTOOL_A_FEATURES_ACTIVE)
            .and_then(|active| attribute(&active, ETHTOOL_A_BITSET_BITS))
            .unwrap_or_default();
        let names = NlasIterator::new(bits.as_slice()).filter_map(Result::ok).filter_map(|bit| {
            let name = attribute(bit.value(), ETHTOOL_A_BITSET_BIT_NAME)?;
            Some(String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned())
        });
        Ok(Some(names.collect()))
    }

    /// The id of a netlink family; `None` if the kernel has no such family.
    fn family(&self, name: &str) -> io::Result<Option<u16>> {
        let name = DefaultNla::new(CTRL_ATTR_FAMILY_NAME, format!("{name}\0").into_bytes());
        match self.ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, vec![name]) {
            Ok(answer) => Ok(attribute(&answer, CTRL_ATTR_FAMILY_ID)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u16::from_ne_bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends one request and returns the attributes of its one answer.
    fn ask(&self, family: u16, command: u8, attributes: Vec<DefaultNla>) -> io::Result<Vec<u8>> {
        let mut payload = vec![0; attributes.as_slice().buffer_len()];
        attributes.as_slice().emit(&mut payload);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        let request = Request { family, command, payload };
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        match NetlinkMessage::<Request>::deserialize(&answer).map_err(io::Error::other)?.payload {
            NetlinkPayload::InnerMessage(answer) => Ok(answer.payload),
            NetlinkPayload::Error(error) => Err(error.to_io()),
            _ => Err(io::Error::other("an unexpected answer over generic netlink")),
        }
    }
}

/// The value of the first attribute of this kind.
fn attribute(attributes: &[u8], kind: u16) -> Option<Vec<u8>> {
    let found = NlasIterator::new(attributes).filter_map(Result::ok).find(|attribute| attribute.kind() == kind);
    found.map(|attribute| attribute.value().to_vec())
}

/// A generic netlink message: a command, a version, two reserved bytes, attributes.
#[derive(Debug)]
struct Request {
    family: u16,
    command: u8,
    payload: Vec<u8>,
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        4 + self.payload.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..4].copy_from_slice(&[self.command, 1, 0, 0]);
        buffer[4..].copy_from_slice(&self.payload);
    }
}

impl NetlinkDeserializable for Request {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        match payload {
            [command, _, _, _, attributes @ ..] => {
                Ok(Self { family: header.message_type, command: *command, payload: attributes.to_vec() })
            }
            _ => Err(DecodeError::from("a generic netlink message without its header")),
        }
    }
}
