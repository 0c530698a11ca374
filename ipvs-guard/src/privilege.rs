//! Capabilities of `watch` and `enforce`, given up where nothing needs them.
//!
//! Linux keeps them for each thread, and a new thread has those of the one that starts
//! it. What all threads can do without goes before the first of them starts.

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};

/// What opening a session needs, and opening one again when ip_vs has returned.
/// `enforce` needs most of it as long as it runs.
const WORK: [Capability; 6] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_RESOURCE,
];
/// What finding the network namespace of a process takes that has more capabilities than
/// this one has left (`--metrics`): without it those are not counted.
const FIND: Capability = Capability::CAP_SYS_PTRACE;
/// What sinks need to open the file of a user, or a port below 1024.
const SINKS: [Capability; 2] = [
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_NET_BIND_SERVICE,
];

/// Gives up, for good and for all threads to come, what no part of the agent uses, and
/// the right to gain anything by running another program. To be called before the
/// process has a second thread but for sinks, which give up more by themselves.
pub fn confine() {
    let kept: CapsHashSet = WORK.into_iter().chain(SINKS).chain([FIND]).collect();
    let done = limit_bounding(&kept).and_then(|()| limit(&kept));
    report(done);
    if let Err(error) = nix::sys::prctl::set_no_new_privs() {
        log::warn!("prctl(PR_SET_NO_NEW_PRIVS): {error}; the agent goes on without");
    }
}

/// Gives up for good what a thread does not need that only hands events on.
pub fn confine_sink() {
    report(limit(&SINKS.into_iter().collect()));
}

/// Gives up what watching does not need once its probes are attached: for good where
/// ip_vs cannot go, else until [`rise`].
pub fn rest(for_good: bool) {
    let done = caps::clear(None, CapSet::Effective).and_then(|()| match for_good {
        true => limit(&CapsHashSet::new()),
        false => Ok(()),
    });
    report(done);
}

/// Takes up again what this thread has not given up for good.
pub fn rise() {
    let done = caps::read(None, CapSet::Permitted)
        .and_then(|held| caps::set(None, CapSet::Effective, &held));
    report(done);
}

/// Leaves this thread what it holds of `kept`.
fn limit(kept: &CapsHashSet) -> Result<(), CapsError> {
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        let held = caps::read(None, set)?;
        let fewer: CapsHashSet = held.intersection(kept).copied().collect();
        if fewer != held {
            caps::set(None, set, &fewer)?;
        }
    }
    Ok(())
}

/// So that no program that is run, none is, has more.
fn limit_bounding(kept: &CapsHashSet) -> Result<(), CapsError> {
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        return Ok(());
    }
    for capability in caps::read(None, CapSet::Bounding)?.difference(kept) {
        caps::drop(None, CapSet::Bounding, *capability)?;
    }
    Ok(())
}

fn report(done: Result<(), CapsError>) {
    if let Err(error) = done {
        log::warn!("capabilities: {error}; the agent keeps what it has");
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn held(set: CapSet) -> CapsHashSet {
        caps::read(None, set).unwrap()
    }

    /// As root only: others hold nothing that they could give up.
    #[test]
    fn what_is_given_up_for_good_stays_away_and_the_rest_comes_back() {
        let before = held(CapSet::Permitted);
        let held_before = before.clone();
        // Capabilities are a thread's: those of the other tests stay.
        thread::spawn(move || {
            confine();
            let all: CapsHashSet = WORK.into_iter().chain(SINKS).chain([FIND]).collect();
            let kept: CapsHashSet = held_before.intersection(&all).copied().collect();
            assert_eq!(held(CapSet::Permitted), kept);
            rest(false);
            assert!(held(CapSet::Effective).is_empty());
            rise();
            assert_eq!(held(CapSet::Effective), kept);
            let sink = thread::spawn(|| {
                confine_sink();
                held(CapSet::Permitted)
            });
            let sink = sink.join().unwrap();
            assert!(sink.is_subset(&SINKS.into_iter().collect()), "{sink:?}");
            rest(true);
            rise();
            assert!(held(CapSet::Permitted).is_empty());
            assert!(nix::sys::prctl::get_no_new_privs().unwrap());
        })
        .join()
        .unwrap();
        assert_eq!(held(CapSet::Permitted), before);
    }

    #[test]
    fn the_unit_grants_what_is_needed_and_no_more() {
        let unit = include_str!("../../deploy/systemd/ipvs-guard.service");
        for key in ["CapabilityBoundingSet=", "AmbientCapabilities="] {
            let granted = unit
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .unwrap();
            let granted: CapsHashSet = granted
                .split_whitespace()
                .map(|name| name.parse().unwrap())
                .collect();
            // The limit is lifted by LimitMEMLOCK.
            let needed: CapsHashSet = WORK
                .into_iter()
                .filter(|capability| *capability != Capability::CAP_SYS_RESOURCE)
                .collect();
            assert_eq!(granted, needed, "{key}");
        }
        assert!(unit.lines().any(|line| line == "LimitMEMLOCK=infinity"));
    }
}
