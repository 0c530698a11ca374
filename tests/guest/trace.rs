//! `--trace` follows a SYN from entry to verdict.

use ipvs_guard::{lab::topology::Families, netlink::ipvs::Family};

use crate::support::{
    agent::{Agent, key},
    healthy, incident, short_limits,
};

#[test]
fn each_syn_is_followed() {
    let topology = incident(Families::Dual);
    let agent = Agent::watch_in(topology.node(), &["--trace"]);
    for family in [Family::Inet, Family::Inet6] {
        healthy(&topology, family, 45_000..45_010);
    }
    topology.mute_backend(0).unwrap();
    topology.set_weight(0, 0).unwrap();
    let ports: Vec<u16> = (45_000..45_010).collect();
    let attempts = topology
        .connect_all(Family::Inet, &ports, short_limits())
        .unwrap();
    assert_eq!(attempts.iter().filter(|a| !a.is_answered()).count(), 5);
    let ended = agent.stop();
    assert_eq!(ended.lost(), 0);
    let traces = ended.class("ipvs.trace");
    let misses = traces.iter().filter(|t| t["ipvs.trace.lookup"] == "miss");
    assert_eq!(misses.count(), 20, "each first SYN found no entry");
    let stale = ended.class("ipvs.stale_reuse");
    assert!(stale.len() >= 5);
    for event in &stale {
        let same: Vec<_> = traces.iter().filter(|t| key(t) == key(event)).collect();
        assert!(!same.is_empty(), "no trace of {event}");
        for trace in same {
            assert_eq!(trace["ipvs.trace.lookup"], "hit");
            assert_eq!(trace["destination.nat.ip"], event["destination.nat.ip"]);
            let ns = |key: &str| trace[key].as_u64().unwrap();
            assert!(ns("ipvs.trace.lookup_ns") > 0);
            assert!(ns("ipvs.trace.total_ns") > ns("ipvs.trace.lookup_ns"));
        }
    }
    assert!(traces.iter().all(|t| t["ipvs.trace.verdict"] != "drop"));
}
