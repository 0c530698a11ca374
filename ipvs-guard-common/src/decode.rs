//! From the bytes of the ring buffer to typed records.

use core::fmt;

use zerocopy::FromBytes;

use crate::{
    ABI_VERSION,
    event::{
        DestRecord, FaultRecord, FlowRecord, GoneRecord, Header, Kind, PacketRecord, SkbRecord,
        SynRecord, TraceRecord, VerdictRecord,
    },
};

/// A record, its kind checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A stale SYN.
    Stale(SynRecord),
    /// A SYN that was scheduled anew.
    Rescheduled(SynRecord),
    /// A SYN of the layout's proof.
    Proof(SynRecord),
    /// A destination added or changed.
    DestUpdate(DestRecord),
    /// A destination removed.
    DestDelete(DestRecord),
    /// A SYN's way through `ip_vs_in`.
    Trace(TraceRecord),
    /// A packet of the layout's proof.
    ProofSkb(SkbRecord),
    /// A failed read of the layout's proof.
    ProofFault(FaultRecord),
    /// A SYN that its verdict met.
    Met(VerdictRecord),
    /// A SYN of a stale flow, acted on before IPVS saw it.
    Turned(FlowRecord),
    /// A SYN that is held back.
    Packet(PacketRecord),
    /// The entry of such a SYN was thrown away.
    Gone(GoneRecord),
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Fewer bytes than the record takes.
    Short {
        /// Bytes there are.
        len: usize,
    },
    /// Written by another build.
    Abi {
        /// Its ABI version.
        version: u16,
    },
    /// No such kind.
    Kind {
        /// Its number.
        kind: u16,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { len } => write!(f, "record of {len} bytes is cut short"),
            Self::Abi { version } => {
                write!(f, "record has ABI version {version}, not {ABI_VERSION}")
            }
            Self::Kind { kind } => write!(f, "record has unknown kind {kind}"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Decodes one record; bytes after it are ignored.
///
/// # Errors
/// [`DecodeError`] when `bytes` is too short, of another ABI or of no known kind.
pub fn record(bytes: &[u8]) -> Result<Record, DecodeError> {
    let header: Header = prefix(bytes)?;
    if header.abi() != ABI_VERSION {
        return Err(DecodeError::Abi {
            version: header.abi(),
        });
    }
    let kind = Kind::from_raw(header.kind()).ok_or(DecodeError::Kind {
        kind: header.kind(),
    })?;
    Ok(match kind {
        Kind::Stale => Record::Stale(prefix(bytes)?),
        Kind::Rescheduled => Record::Rescheduled(prefix(bytes)?),
        Kind::Proof => Record::Proof(prefix(bytes)?),
        Kind::DestUpdate => Record::DestUpdate(prefix(bytes)?),
        Kind::DestDelete => Record::DestDelete(prefix(bytes)?),
        Kind::Trace => Record::Trace(prefix(bytes)?),
        Kind::ProofSkb => Record::ProofSkb(prefix(bytes)?),
        Kind::ProofFault => Record::ProofFault(prefix(bytes)?),
        Kind::Met => Record::Met(prefix(bytes)?),
        Kind::Turned => Record::Turned(prefix(bytes)?),
        Kind::Packet => Record::Packet(prefix(bytes)?),
        Kind::Gone => Record::Gone(prefix(bytes)?),
    })
}

fn prefix<T: FromBytes>(bytes: &[u8]) -> Result<T, DecodeError> {
    T::read_from_prefix(bytes)
        .map(|(value, _)| value)
        .map_err(|_| DecodeError::Short { len: bytes.len() })
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::addr::Endpoint;

    fn sample() -> SynRecord {
        SynRecord {
            header: Header::new(Kind::Stale, Header::RETRANSMISSION, 5),
            seq: 77,
            client: Endpoint::new(Ipv4Addr::new(10, 0, 0, 1).into(), 40000u16.to_be_bytes()),
            ..SynRecord::default()
        }
    }

    #[test]
    fn a_record_survives_the_ring() {
        let Ok(Record::Stale(back)) = record(sample().as_bytes()) else {
            panic!("not decoded as stale");
        };
        assert_eq!(back, sample());
        assert!(back.header.has(Header::RETRANSMISSION));
        assert_eq!(back.client.port(), 40000);
    }

    #[test]
    fn a_foreign_abi_is_refused() {
        let mut bytes = sample().as_bytes().to_vec();
        bytes[0] ^= 0xff;
        assert!(matches!(record(&bytes), Err(DecodeError::Abi { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            // Either outcome will do: the test is that there is one.
            let _outcome = record(&bytes);
        }

        #[test]
        fn any_cut_or_change_of_a_record_decodes_or_fails(
            cut in 0usize..=120, at in 0usize..120, value: u8
        ) {
            let mut bytes = sample().as_bytes().to_vec();
            bytes[at] = value;
            bytes.truncate(cut);
            let whole = cut == bytes.capacity().min(120);
            let decoded = record(&bytes);
            prop_assert!(whole || cut >= 24 || decoded.is_err());
        }
    }
}
