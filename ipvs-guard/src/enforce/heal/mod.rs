//! Healing: entries of destinations of weight 0 are re-pointed to living ones of
//! the same service, by the kernel's own protocol for the connection table.

mod channel;
mod held;
mod mend;
mod message;
mod rescue;
mod targets;

pub(super) use self::{
    channel::{Channel, is_ours, sweep},
    held::HeldNames,
    mend::{Fate, Mender},
    rescue::{Ending, Rescues},
    targets::{Target, Targets},
};
