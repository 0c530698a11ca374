//! Healing: entries of destinations of weight 0 are re-pointed to living ones of
//! the same service, by the kernel's own protocol for the connection table.

mod channel;
mod mend;
mod message;
mod rescue;
mod syns;
mod targets;

pub(super) use self::{
    channel::{Channel, is_ours, sweep},
    mend::{Changes, Fate, Mender},
    rescue::{Ending, Rescues},
    syns::SynNames,
    targets::{Target, Targets},
};
