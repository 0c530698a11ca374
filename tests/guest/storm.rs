//! 50,000 stale SYNs as fast as the machine sends them.

use std::time::Instant;

use ipvs_guard::{
    lab::topology::{Families, backend_device, client_address},
    netlink::ipvs::{Family, ServiceId},
};

use crate::support::{
    agent::{Agent, is_retransmission},
    capture::Capture,
    healthy, incident,
    syn::Sender,
};

const SYNS: u32 = 50_000;
const PORTS: u16 = 200;
/// What the agent may have resident at most, in KiB.
const MEMORY: u64 = 48 << 10;

#[test]
fn reported_and_lost_are_what_was_sent() {
    // The test's own devices must not drop what is sent.
    std::fs::write("/proc/sys/net/core/netdev_max_backlog", "200000").unwrap();
    let topology = incident(Families::Inet);
    let agent = Agent::watch_in(topology.node(), &["--event", "stale_reuse,loss"]);
    healthy(&topology, Family::Inet, 40_000..40_000 + PORTS);
    topology.mute_backend(0).unwrap();
    topology.set_weight(0, 0).unwrap();
    let stale: Vec<u16> = topology
        .connections()
        .unwrap()
        .iter()
        .filter(|entry| {
            entry.destination == ipvs_guard::lab::topology::backend_address(0, Family::Inet)
        })
        .map(|entry| entry.client.port())
        .collect();
    assert_eq!(stale.len(), usize::from(PORTS) / 2);

    let ServiceId::Address { address, .. } = topology.service(Family::Inet) else {
        panic!("the topology's service has an address");
    };
    let sender = Sender::new(topology.client(), client_address(Family::Inet), address);
    let capture = Capture::start(topology.node(), &backend_device(0));
    let begin = Instant::now();
    for i in 0..SYNS {
        let port = stale[i as usize % stale.len()];
        // A sequence number of its own makes each a new incident.
        sender.send(port, 0x1000_0000 + i);
    }
    let took = begin.elapsed();
    agent.wait_until_quiet();
    let sent = capture.finish().len() as u64;
    let peak = agent.peak_kib();
    let ended = agent.stop();

    let events = ended.class("ipvs.stale_reuse");
    assert!(events.iter().all(|event| !is_retransmission(event)));
    let (reported, lost) = (events.len() as u64, ended.lost());
    println!(
        "storm: {sent} stale SYNs left for the dead server in {:.1} s; {reported} reported, \
         {lost} counted as lost; peak memory {peak} KiB",
        took.as_secs_f64()
    );
    assert_eq!(
        sent,
        u64::from(SYNS),
        "captured at the dead server's device"
    );
    assert_eq!(reported + lost, sent);
    assert!(peak < MEMORY, "{peak} KiB resident");
}
