//! Filters let through what they name, and nothing else.

use std::{thread, time::Duration};

use ipvs_guard::{
    lab::topology::{Families, backend_address, client_address},
    netlink::ipvs::{Family, ServiceId},
    netns::NetNs,
};

use crate::support::{
    agent::{Agent, netns_path},
    healthy, incident,
    syn::Sender,
};

#[test]
fn each_filter_is_applied() {
    let topology = incident(Families::Dual);
    for family in [Family::Inet, Family::Inet6] {
        healthy(&topology, family, 44_000..44_020);
    }
    topology.set_weight(0, 0).unwrap();
    let own = netns_path(topology.node());
    let elsewhere = NetNs::new().unwrap();
    let other = netns_path(&elsewhere);
    let ServiceId::Address { address: v4, .. } = topology.service(Family::Inet) else {
        panic!("the topology's service has an address");
    };
    let ServiceId::Address { address: v6, .. } = topology.service(Family::Inet6) else {
        panic!("the topology's service has an address");
    };
    let client = client_address(Family::Inet);
    let real = backend_address(0, Family::Inet6);
    let v4_only = v4.to_string();
    let v6_host = v6.ip().to_string();
    let wrong_port = format!("{}:81", v4.ip());
    let network = format!("{client}/24");
    let not_the_client = "203.0.113.200/30".to_owned();
    let real = real.to_string();
    let both = format!("{v4},{v6}");
    // A stale SYN of each family on ten ports.
    let cases: [(&[&str], usize); 10] = [
        (&[], 20),
        (&["--vip", &v4_only], 10),
        (&["--vip", &v6_host], 10),
        (&["--vip", &wrong_port], 0),
        (&["--vip", &both], 20),
        (&["--client", &network], 10),
        (&["--client", &not_the_client], 0),
        (&["--dest", &real], 10),
        (&["--netns", &own], 20),
        (&["--netns", &other], 0),
    ];
    let senders = [
        Sender::new(topology.client(), client, v4),
        Sender::new(topology.client(), client_address(Family::Inet6), v6),
    ];
    for (round, (args, expected)) in cases.into_iter().enumerate() {
        let mut all = vec!["--event", "stale_reuse"];
        all.extend_from_slice(args);
        let agent = Agent::watch(&all);
        for sender in &senders {
            for port in 44_000..44_020 {
                sender.send(port, 0x5000_0000 + round as u32);
            }
        }
        thread::sleep(Duration::from_millis(300));
        assert_eq!(agent.stop().events().len(), expected, "{args:?}");
    }
}
