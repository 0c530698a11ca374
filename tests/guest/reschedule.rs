//! SYNs that the kernel schedules anew are healthy.

use ipvs_guard::{
    lab::topology::{Families, backend_address},
    netlink::ipvs::Family,
};

use crate::support::{agent::Agent, healthy, incident};

const CONNECTIONS: u16 = 100;

#[test]
fn rescheduled_syns_are_told_when_asked_for_and_are_no_incident() {
    for sysctl in ["conn_reuse_mode", "expire_nodest_conn"] {
        let topology = incident(Families::Inet);
        topology
            .set_sysctl(&format!("net/ipv4/vs/{sysctl}"), "1")
            .unwrap();
        // With conntrack the kernel drops such a SYN instead (before 5.9, and of
        // connections that are still confirmed).
        topology.set_sysctl("net/ipv4/vs/conntrack", "0").unwrap();
        let agent = Agent::watch_in(topology.node(), &["--event", "stale_reuse,rescheduled"]);
        let ports = 43_000..43_000 + CONNECTIONS;
        healthy(&topology, Family::Inet, ports.clone());
        topology.set_weight(0, 0).unwrap();
        let waiting = topology.connections().unwrap();
        healthy(&topology, Family::Inet, ports);
        let ended = agent.stop();
        // Mode 1 schedules every reuse of a TIME_WAIT entry anew, the other only
        // those of a destination of weight 0.
        let expected = waiting
            .iter()
            .filter(|entry| {
                sysctl == "conn_reuse_mode" || entry.destination == backend_address(0, Family::Inet)
            })
            .count();
        let events = ended.class("ipvs.rescheduled");
        assert!(expected >= usize::from(CONNECTIONS) / 2);
        assert_eq!(events.len(), expected, "{sysctl}");
        assert_eq!(
            ended.events().len(),
            events.len(),
            "no stale SYN with {sysctl}"
        );
        let alive = backend_address(1, Family::Inet).ip().to_string();
        assert!(
            events
                .iter()
                .all(|event| event["destination.nat.ip"] == alive)
        );
    }
}
