//! `ipvs-guard watch`.

use super::stream;
use crate::{failure::Failure, privilege, settings::Scope};

/// Stream every stale SYN of this node, and the drains around them
///
/// A stale SYN reuses the port of an earlier connection and is sent to that
/// connection's real server although its weight is 0. Ends with SIGINT; the human
/// form then shows the incidents of each service and destination.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    stream: stream::Args,

    /// Network namespaces: all of the node, self, or the one at PATH
    #[arg(
        long,
        value_name = "all|self|PATH",
        default_value = "all",
        env = "IPVS_GUARD_NETNS"
    )]
    netns: Scope,
}

impl Args {
    /// Whether the values go together.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.stream.check()
    }
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    args.check()?;
    let Args { stream, netns } = args;
    let exports = stream.open_exports()?;
    let inode = netns.inode()?;
    let place = match netns {
        Scope::Path(path) => Some(path),
        Scope::All | Scope::Own => None,
    };
    privilege::confine();
    stream.stream(inode, place, None, exports)
}
