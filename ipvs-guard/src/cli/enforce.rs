//! `ipvs-guard enforce`.

use std::{str::FromStr, time::Duration};

use ipvs_guard_common::state::ConnState;

use super::stream;
use crate::{
    enforce::{Action, Lock, LockError, Settings, check_interfaces, sweep},
    failure::Failure,
    netns::NetNs,
    preflight, privilege,
    say::say,
    settings::{self, Scope},
};

/// Act on stale SYNs: clients fail at once, not after three seconds, or not at all
///
/// A SYN that would go to a destination of weight 0 by an old connection entry is
/// answered with a reset, sent to a living destination, or dropped. Flags of the stream (--vip, --client, --dest)
/// limit what is acted on. Nothing stays behind, and an agent that hangs or dies
/// enforces nothing after 2 s at most. Try it with --dry-run first.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What is done: reset answers the SYN, so that the client gets ECONNREFUSED in
    /// a millisecond and may retry on a new port; heal re-points closed entries to
    /// living destinations of the service, by weight, as soon as a weight is 0, and
    /// holds back a SYN that comes before until its entry is, so that its client sees
    /// a normal connection (it resets where there is no living destination, and SYNs
    /// of entries that may still carry data); drop is worse for clients than
    /// nothing: they repeat the SYN until their own time-out, where without the guard
    /// they are told after 3 s that the server cannot be reached (lab --action all
    /// shows both)
    #[arg(
        long,
        value_name = "ACTION",
        value_enum,
        default_value = "reset",
        env = "IPVS_GUARD_ACTION"
    )]
    action: Action,

    /// Say what would be done, and do nothing
    #[arg(long, value_parser = settings::switch(), env = "IPVS_GUARD_DRY_RUN")]
    dry_run: bool,

    /// Only on these devices; all that carry traffic of IPVS when not given, and
    /// those that appear later
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        env = "IPVS_GUARD_INTERFACE"
    )]
    interface: Vec<String>,

    /// How long a stale flow is remembered at most; never longer than its entry
    #[arg(long, value_name = "T", default_value = "60s", value_parser = settings::time, env = "IPVS_GUARD_TTL")]
    ttl: Duration,

    /// Leave a destination alone for this time after its weight became 0
    #[arg(long, value_name = "T", default_value = "0s", value_parser = settings::time, env = "IPVS_GUARD_GRACE")]
    grace: Duration,

    /// Leave a destination alone that answered (sent a SYN-ACK, or anything while
    /// it drains) within this time; 0s: none is left alone. When not given, 3s before
    /// anything is dropped or reset, and 0s before it is healed, for no connection is
    /// lost by that
    #[arg(long, value_name = "T", value_parser = settings::time, env = "IPVS_GUARD_UNLESS_ANSWERING")]
    unless_answering: Option<Duration>,

    /// With --action heal: let persistence templates of destinations of weight 0 end,
    /// too, so that their clients are scheduled anew; such a client loses its server
    /// for good
    #[arg(long, value_parser = settings::switch(), env = "IPVS_GUARD_HEAL_PERSISTENT")]
    heal_persistent: bool,

    /// Act on entries in these states only, as ipvsadm -Lnc names them (TIME_WAIT,
    /// CLOSE, SYN_RECV, …); in every state when not given
    #[arg(
        long,
        value_name = "STATE,…",
        value_delimiter = ',',
        env = "IPVS_GUARD_STATE"
    )]
    state: Vec<State>,

    /// Answers a second at most; what is beyond passes. No limit when not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), env = "IPVS_GUARD_MAX_RATE")]
    max_rate: Option<u32>,

    /// The network namespace that is enforced: self, or the one at PATH
    #[arg(
        long,
        value_name = "self|PATH",
        default_value = "self",
        env = "IPVS_GUARD_NETNS"
    )]
    netns: Scope,

    #[command(flatten)]
    stream: stream::Args,
}

/// A state of a connection entry.
#[derive(Clone, Copy, Debug)]
struct State(ConnState);

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = || (1..).map_while(ConnState::from_raw);
        all()
            .find(|state| state.name().eq_ignore_ascii_case(text))
            .map(Self)
            .ok_or_else(|| {
                let names: Vec<&str> = all().map(ConnState::name).collect();
                format!("no such state; the states are {}", names.join(", "))
            })
    }
}

impl Args {
    /// Whether the values go together.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.heal_persistent && self.action != Action::Heal {
            return Err(Failure::Usage(
                "--heal-persistent: templates end with --action heal only; add it".into(),
            ));
        }
        one_namespace(&self.netns)?;
        self.stream.check()
    }
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    args.check()?;
    let Args {
        action,
        dry_run,
        interface,
        ttl,
        grace,
        unless_answering,
        heal_persistent,
        state,
        max_rate,
        netns,
        stream,
    } = args;
    let exports = stream.open_exports()?;
    stream.check_files()?;
    preflight::check_proc()?;
    preflight::check_privileges()?;
    preflight::check_features()?;
    enter(&netns)?;
    check_interfaces(&interface)?;
    let _lock = Lock::take().map_err(|error| match error {
        LockError::Taken => Failure::Negative(format!("{error}; end that one first")),
        LockError::Io(_) => Failure::Internal(error.into()),
    })?;
    // A dry run changes nothing, leftovers included: they let everything pass.
    if !dry_run {
        for leftover in sweep().map_err(|error| Failure::Internal(error.into()))? {
            say(format_args!(
                "ipvs-guard: removed {} from {}: an agent was killed here",
                leftover.program, leftover.device
            ));
        }
    }
    privilege::confine();
    let states = if state.is_empty() {
        u32::MAX
    } else {
        state
            .iter()
            .fold(0, |bits, State(state)| bits | 1 << *state as u32)
    };
    let settings = Settings {
        action,
        dry_run,
        grace,
        unless_answering,
        heal_persistent,
        ttl,
        states,
        max_rate: max_rate.unwrap_or(0),
        interfaces: interface,
    };
    let netns = NetNs::current().map_err(|error| Failure::Internal(error.into()))?;
    stream.stream(Some(netns.inode()), None, Some(settings), exports)
}

/// Makes the namespace of `--netns` that of this process: devices, services and
/// sockets are then those of that namespace.
pub(super) fn enter(scope: &Scope) -> Result<(), Failure> {
    let Some(netns) = scope.open()? else {
        return Err(every_namespace());
    };
    if matches!(scope, Scope::Own) {
        return Ok(());
    }
    netns.enter().map_err(|error| {
        if error.is_privilege() {
            Failure::Privilege(error.to_string())
        } else {
            Failure::Internal(error.into())
        }
    })
}

/// Whether `scope` is one namespace.
pub(super) fn one_namespace(scope: &Scope) -> Result<(), Failure> {
    match scope {
        Scope::All => Err(every_namespace()),
        Scope::Own | Scope::Path(_) => Ok(()),
    }
}

fn every_namespace() -> Failure {
    Failure::Usage(
        "--netns all: one namespace is enforced at a time; give self or a path such as \
         /run/netns/NAME"
            .into(),
    )
}
