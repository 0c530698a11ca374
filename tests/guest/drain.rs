//! Drains begin and end with the weight, and only with it.

use ipvs_guard::{
    lab::topology::{Families, backend_address},
    netlink::ipvs::Family,
};
use serde_json::Value;

use crate::support::{agent::Agent, incident};

fn names(events: &[Value]) -> Vec<(String, String)> {
    events
        .iter()
        .map(|event| {
            let text = |key: &str| event[key].as_str().unwrap().to_owned();
            (text("event.name"), text("destination.nat.ip"))
        })
        .collect()
}

#[test]
fn each_change_is_told_once() {
    let topology = incident(Families::Dual);
    let agent = Agent::watch_in(topology.node(), &[]);
    topology.set_weight(0, 0).unwrap();
    topology.set_weight(0, 0).unwrap();
    topology.set_weight(0, 5).unwrap();
    topology.set_weight(0, 3).unwrap();
    topology.set_weight(1, 0).unwrap();
    topology.remove_backend(1).unwrap();
    topology.remove_backend(0).unwrap();
    let ended = agent.stop();
    let ip = |number, family| backend_address(number, family).ip().to_string();
    let mut expected = Vec::new();
    for (name, number) in [
        ("ipvs.drain_started", 0),
        ("ipvs.drain_ended", 0),
        ("ipvs.drain_started", 1),
        ("ipvs.drain_ended", 1),
    ] {
        for family in [Family::Inet, Family::Inet6] {
            expected.push((name.to_owned(), ip(number, family)));
        }
    }
    assert_eq!(names(&ended.events()), expected);
    let first = &ended.events()[0];
    assert_eq!(first["ipvs.dest.weight"], 0);
    assert_eq!(first["destination.port"], 80);
    assert_eq!(first["network.transport"], "tcp");
    assert!(
        first.get("source.address").is_none(),
        "what is not known is absent"
    );
}

#[test]
fn removing_the_service_ends_its_drains() {
    let topology = incident(Families::Inet);
    topology.set_weight(0, 0).unwrap();
    let agent = Agent::watch_in(topology.node(), &["--event", "drain_started,drain_ended"]);
    topology.open_ipvs().unwrap().flush().unwrap();
    let ended = agent.stop();
    let expected = backend_address(0, Family::Inet).ip().to_string();
    assert_eq!(
        names(&ended.events()),
        [("ipvs.drain_ended".to_owned(), expected)]
    );
}
