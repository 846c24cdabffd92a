//! What users are promised, with real servers and clients, counted in connections. Needs root; one bed at a time.

mod bed;
