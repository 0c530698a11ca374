//! `ipvs-guard cleanup`.

use super::{
    enforce::{enter, one_namespace},
    print,
};
use crate::{
    enforce::{Lock, LockError, sweep},
    failure::Failure,
    settings::Scope,
};

/// Remove what a killed guard left on this node, and say what it was
///
/// That can be the kernel's sync daemon (of --action heal), whose device went with
/// the agent, so that it hears nobody; and, up to kernel 6.5, TC filters, which let
/// every packet pass once their agent is gone.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The network namespace to clean: self, or the one at PATH
    #[arg(
        long,
        value_name = "self|PATH",
        default_value = "self",
        env = "IPVS_GUARD_NETNS"
    )]
    netns: Scope,
}

impl Args {
    /// Whether the values serve.
    pub(super) fn check(&self) -> Result<(), Failure> {
        one_namespace(&self.netns)
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    enter(&args.netns)?;
    let missing = !caps::has_cap(
        None,
        caps::CapSet::Effective,
        caps::Capability::CAP_NET_ADMIN,
    )
    .unwrap_or(false);
    if missing {
        return Err(Failure::Privilege(
            "missing privilege: CAP_NET_ADMIN (to remove filters); run with sudo".into(),
        ));
    }
    let _lock = Lock::take().map_err(|error| match error {
        LockError::Taken => Failure::Negative(format!(
            "{error}; what is on the devices is in use: end that one, and it cleans up itself"
        )),
        LockError::Io(_) => Failure::Internal(error.into()),
    })?;
    let removed = sweep().map_err(|error| Failure::Internal(error.into()))?;
    let mut text = String::new();
    for leftover in &removed {
        text.push_str(&format!(
            "removed {} from {}\n",
            leftover.program, leftover.device
        ));
    }
    if removed.is_empty() {
        text.push_str("nothing was left\n");
    }
    print(text.as_bytes())
}
