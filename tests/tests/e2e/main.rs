//! What users are promised, with real servers and clients, counted in connections. Needs root.

mod agent;
mod bed;
mod churn;
mod dead;
mod deluge;
mod ecmp;
mod ipip;
mod limits;
mod modes;
mod node;
mod scene;
mod see;
mod stack;
mod stage;
mod supervised;
mod traffic;
mod upgrade;
mod volume;
