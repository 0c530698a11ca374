//! The eBPF programs: loading them with what they must know, attaching them,
//! reading their counters, keeping the maps that they go by, trying them.

mod attach;
mod devices;
mod guard;
mod load;
mod run;
mod send;
mod stats;
mod trial;

pub use self::{
    attach::Attachments,
    devices::{Covered, Devices, remove_leftovers},
    guard::{GuardMaps, HeartMap},
    load::{BpfError, Loaded, Options},
    run::Tried,
    send::Sender,
    stats::{Counters, KERNEL_STAGES, loaded_programs},
    trial::Packet,
};
