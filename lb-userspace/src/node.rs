//! The machine as the kernel describes it over netlink: interfaces, routes, neighbours, and how XDP
//! may send through each interface; and the kernel's announcements of changes. Nothing here depends
//! on the data path.

pub mod changes;
pub mod genl;
pub mod interfaces;
pub(crate) mod neighbour_tables;
pub mod neighbours;
pub(crate) mod pace;
pub mod reach;
pub(crate) mod routes;
pub mod ways_out;
