//! What the probes must have read.

use std::{fmt::Debug, net::SocketAddr};

use ipvs_guard_common::{
    addr::Endpoint,
    decode::Record,
    event::{DestRecord, SkbRecord, SynRecord},
    layout::FieldId,
    state::{ConnState, Forwarding},
};

use super::{ProofError, stage::Case};

/// TCP's number in `ip_vs_conn.protocol`.
const TCP: u16 = 6;

type Outcome = Result<(), ProofError>;

/// The records of our own SYN. A softirq that interrupts the prover runs under
/// its name, so packets of others can be among them: of theirs, nothing is
/// asked. With a wrong layout ours is not recognised; then all are.
pub(super) fn own(records: Vec<Record>, seq: u32) -> Vec<Record> {
    let ours = |record: &Record| matches!(record, Record::Proof(syn) if syn.seq == seq);
    let Some(end) = records.iter().position(ours) else {
        return records;
    };
    let survey = |record: &Record| matches!(record, Record::ProofSkb(_));
    let begin = records[..end].iter().rposition(survey).unwrap_or(end);
    records[begin..=end].to_vec()
}

/// Packets that the probes looked at, ours or not.
pub(super) fn packets(records: &[Record]) -> usize {
    let survey = |record: &&Record| matches!(record, Record::ProofSkb(_));
    records.iter().filter(survey).count()
}

/// No read failed.
pub(super) fn no_fault(records: &[Record], case: &'static str) -> Outcome {
    for record in records {
        let Record::ProofFault(fault) = record else {
            continue;
        };
        let Some(&field) = FieldId::ALL.get(fault.field as usize) else {
            continue;
        };
        let mut suspects = vec![field];
        suspects.extend(led_by(field).iter().filter(|id| **id != field));
        return Err(ProofError::Field {
            suspects,
            reason: "it cannot be read there".into(),
            case,
        });
    }
    Ok(())
}

/// The pointers by which the probes come to the structure of `field`.
fn led_by(field: FieldId) -> &'static [FieldId] {
    match field.structure() {
        "ip_vs_dest" => &[FieldId::ConnDest],
        "ip_vs_service" => &[FieldId::DestSvc],
        "netns_ipvs" => &[FieldId::ConnIpvs, FieldId::SvcIpvs],
        "net" => &[FieldId::IpvsNet, FieldId::ConnIpvs, FieldId::SvcIpvs],
        "sk_buff" => &[
            FieldId::SkbHead,
            FieldId::SkbNetworkHeader,
            FieldId::SkbTransportHeader,
            FieldId::SkbTail,
        ],
        _ => &[],
    }
}

struct Check {
    case: &'static str,
}

impl Check {
    fn same<T: PartialEq + Debug>(&self, suspects: &[FieldId], read: T, expected: T) -> Outcome {
        if read == expected {
            return Ok(());
        }
        Err(ProofError::Field {
            suspects: suspects.to_vec(),
            reason: format!("expected {expected:?}, read {read:?}"),
            case: self.case,
        })
    }

    fn endpoint(
        &self,
        ip: &[FieldId],
        port: &[FieldId],
        read: Endpoint,
        expected: SocketAddr,
    ) -> Outcome {
        self.same(ip, read.addr().ip(), expected.ip())?;
        self.same(port, read.port(), expected.port())
    }
}

/// The destination was added.
pub(super) fn added(records: &[Record], case: &Case, netns: u32, available_bit: u32) -> Outcome {
    let check = Check { case: case.name };
    let record = update(records)?;
    check.same(
        &[FieldId::SvcIpvs, FieldId::IpvsNet, FieldId::NetInum],
        record.netns,
        netns,
    )?;
    service(&check, record, case)?;
    // It becomes available in the course of the call that is probed.
    check.same(&[FieldId::DestFlags], record.dest_flags & available_bit, 0)?;
    check.same(
        &[FieldId::UdestWeight],
        record.weight_after,
        case.weight as i32,
    )
}

/// Its weight was set to 0.
pub(super) fn drained(records: &[Record], case: &Case, available_bit: u32) -> Outcome {
    let check = Check { case: case.name };
    let record = update(records)?;
    check.same(
        &[FieldId::DestFlags],
        record.dest_flags & available_bit,
        available_bit,
    )?;
    check.same(
        &[FieldId::DestWeight],
        record.weight_before,
        case.weight as i32,
    )?;
    check.same(&[FieldId::UdestWeight], record.weight_after, 0)
}

/// It was removed.
pub(super) fn removed(records: &[Record], case: &Case, available_bit: u32) -> Outcome {
    let check = Check { case: case.name };
    let Some(record) = records.iter().find_map(|record| {
        if let Record::DestDelete(found) = record {
            Some(found)
        } else {
            None
        }
    }) else {
        return Err(ProofError::Unseen("removing a destination"));
    };
    check.endpoint(
        &[FieldId::DestSvc],
        &[FieldId::DestSvc],
        record.vip,
        case.vip,
    )?;
    // It was taken out of its service just before.
    check.same(&[FieldId::DestFlags], record.dest_flags & available_bit, 0)?;
    service(&check, record, case)
}

fn update(records: &[Record]) -> Result<&DestRecord, ProofError> {
    records
        .iter()
        .find_map(|record| {
            if let Record::DestUpdate(found) = record {
                Some(found)
            } else {
                None
            }
        })
        .ok_or(ProofError::Unseen("a change of a destination"))
}

fn service(check: &Check, record: &DestRecord, case: &Case) -> Outcome {
    let af = if case.vip.is_ipv4() { 2 } else { 10 };
    check.same(&[FieldId::SvcAf], record.af, af)?;
    check.same(&[FieldId::SvcFwmark], record.fwmark, 0)?;
    check.same(&[FieldId::SvcProtocol], record.protocol, TCP)?;
    check.endpoint(
        &[FieldId::SvcAddr, FieldId::SvcAf],
        &[FieldId::SvcPort],
        record.vip,
        case.vip,
    )?;
    check.endpoint(
        &[FieldId::DestAddr, FieldId::DestAf],
        &[FieldId::DestPort],
        record.dest,
        case.dest,
    )
}

/// The SYN that made the entry.
pub(super) fn first_syn(
    records: &[Record],
    case: &Case,
    netns: u32,
    available_bit: u32,
) -> Outcome {
    let check = Check { case: case.name };
    packet(&check, records, case)?;
    let syn = proof(&check, records, case.seqs[0])?;
    check.same(
        &[FieldId::ConnIpvs, FieldId::IpvsNet, FieldId::NetInum],
        syn.netns,
        netns,
    )?;
    entry(&check, syn, case)?;
    let dest = [FieldId::DestWeight, FieldId::ConnDest];
    check.same(&dest, syn.weight, case.weight as i32)?;
    check.same(
        &[FieldId::DestFlags, FieldId::ConnDest],
        syn.dest_flags & available_bit,
        available_bit,
    )?;
    check.same(&[FieldId::ConnState], syn.state, ConnState::None as u16)?;
    check.same(&[FieldId::ConnInPkts], syn.in_pkts, 0)
}

/// The SYN that found the entry, its destination being of weight 0.
pub(super) fn second_syn(records: &[Record], case: &Case) -> Outcome {
    let check = Check { case: case.name };
    let syn = proof(&check, records, case.seqs[1])?;
    entry(&check, syn, case)?;
    check.same(&[FieldId::DestWeight, FieldId::ConnDest], syn.weight, 0)?;
    check.same(&[FieldId::ConnState], syn.state, ConnState::SynRecv as u16)?;
    check.same(&[FieldId::ConnInPkts], syn.in_pkts, 1)
}

fn proof<'a>(check: &Check, records: &'a [Record], seq: u32) -> Result<&'a SynRecord, ProofError> {
    let syn = records.iter().find_map(|record| {
        if let Record::Proof(found) = record {
            Some(found)
        } else {
            None
        }
    });
    let Some(syn) = syn else {
        return Err(ProofError::Field {
            suspects: PACKET.to_vec(),
            reason: "no SYN is found there".into(),
            case: check.case,
        });
    };
    check.same(&PACKET, syn.seq, seq)?;
    Ok(syn)
}

const PACKET: [FieldId; 2] = [FieldId::SkbHead, FieldId::SkbNetworkHeader];

/// `struct sk_buff` of the SYN, which has no TCP option.
fn packet(check: &Check, records: &[Record], case: &Case) -> Outcome {
    let Some(skb) = records.iter().find_map(|record| {
        if let Record::ProofSkb(found) = record {
            Some(found)
        } else {
            None
        }
    }) else {
        return Err(ProofError::Unseen("a SYN"));
    };
    let SkbRecord {
        header: _,
        head,
        network_header,
        transport_header,
        tail,
        pad: _,
    } = *skb;
    // Kernel addresses begin with at least 7 one bits on every architecture that
    // the agent runs on.
    check.same(&[FieldId::SkbHead], head >> 57, 0x7f)?;
    let size = if case.vip.is_ipv4() {
        // A raw IPv6 socket leaves it at the network header.
        check.same(
            &[FieldId::SkbTransportHeader, FieldId::SkbNetworkHeader],
            transport_header.wrapping_sub(network_header),
            20,
        )?;
        40
    } else {
        60
    };
    check.same(
        &[FieldId::SkbTail, FieldId::SkbNetworkHeader],
        tail.wrapping_sub(network_header),
        size,
    )
}

fn entry(check: &Check, syn: &SynRecord, case: &Case) -> Outcome {
    check.same(&[FieldId::ConnProtocol], u16::from(syn.protocol), TCP)?;
    check.endpoint(
        &[FieldId::ConnCaddr, FieldId::ConnAf],
        &[FieldId::ConnCport],
        syn.client,
        case.client,
    )?;
    check.endpoint(
        &[FieldId::ConnVaddr, FieldId::ConnAf],
        &[FieldId::ConnVport],
        syn.vip,
        case.vip,
    )?;
    check.endpoint(
        &[FieldId::ConnDaddr, FieldId::ConnDaf],
        &[FieldId::ConnDport],
        syn.dest,
        case.dest,
    )?;
    check.same(
        &[FieldId::ConnFlags],
        Forwarding::from_flags(syn.conn_flags),
        Some(case.forwarding),
    )
}
