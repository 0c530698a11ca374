//! Layouts of kernels that do not describe their modules: before 5.11, or
//! built without `CONFIG_DEBUG_INFO_BTF_MODULES`.
//!
//! Offsets are those of x86_64 with `include/net/ip_vs.h` as in the versions
//! that each row names, and the protocols and options that distributions
//! build. A release does not tell which fixes a kernel carries, so there are
//! rows that only differ by them, and a row is a guess until the caller has
//! proved it on a live connection.

use ipvs_guard_common::layout::{Field, FieldId, KernelLayout};

/// One layout of the `ip_vs` structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The kernels it was seen in, for messages.
    pub seen_in: &'static str,
    dest_flags: Field,
    dest_svc: u16,
    ipvs_net: u16,
}

/// 5.10.223, 5.10.251, 5.10.262 (read from their code, for want of BTF), 6.1.176.
const TO_6_1: Row = Row {
    seen_in: "5.10 to 6.1",
    dest_flags: FLAGS,
    dest_svc: 392,
    ipvs_net: 2160,
};

/// 6.1.192.
const TO_6_1_CFLAGS: Row = Row {
    seen_in: "6.1.192, where the available bit is in cflags",
    dest_flags: CFLAGS,
    dest_svc: 408,
    ipvs_net: 2160,
};

/// 6.18.15. 6.2 enlarged `ip_vs_stats` and rearranged `netns_ipvs`.
const TO_6_18: Row = Row {
    seen_in: "6.18.15",
    dest_flags: FLAGS,
    dest_svc: 400,
    ipvs_net: 2024,
};

/// 6.12.107, 6.12.117.
const TO_6_18_CFLAGS: Row = Row {
    seen_in: "6.12.107, where the available bit is in cflags",
    dest_flags: CFLAGS,
    dest_svc: 416,
    ipvs_net: 2024,
};

const FLAGS: Field = Field {
    offset: 52,
    width: 4,
};
const CFLAGS: Field = Field {
    offset: 64,
    width: 8,
};

/// The rows to try for a kernel that calls itself `release`, the likeliest
/// first; none when the table does not know such a kernel.
pub fn candidates(release: &str) -> &'static [Row] {
    if !cfg!(target_arch = "x86_64") {
        return &[];
    }
    match version(release) {
        Some((5, 10..) | (6, 0..=1)) => &[TO_6_1, TO_6_1_CFLAGS],
        Some((6, 2..=18)) => &[TO_6_18, TO_6_18_CFLAGS],
        _ => &[],
    }
}

impl Row {
    /// Puts the fields of the `ip_vs` structures into `layout`, and leaves
    /// those of `net` and `sk_buff` alone.
    pub fn fill(&self, layout: &mut KernelLayout) {
        for &id in FieldId::ALL {
            if let Some(field) = self.field(id) {
                layout.set(id, field);
            }
        }
    }

    /// Where `id` is; `None` for what is not a structure of `ip_vs`.
    pub fn field(&self, id: FieldId) -> Option<Field> {
        let (offset, width) = match id {
            FieldId::ConnCport => (16, 2),
            FieldId::ConnDport => (18, 2),
            FieldId::ConnVport => (20, 2),
            FieldId::ConnAf => (22, 2),
            FieldId::ConnCaddr => (24, 16),
            FieldId::ConnVaddr => (40, 16),
            FieldId::ConnDaddr => (56, 16),
            FieldId::ConnFlags => (72, 4),
            FieldId::ConnProtocol => (76, 2),
            FieldId::ConnDaf => (78, 2),
            FieldId::ConnIpvs => (80, 8),
            FieldId::ConnState => (148, 2),
            FieldId::ConnDest => (184, 8),
            FieldId::ConnInPkts => (192, 4),
            FieldId::DestAf => (32, 2),
            FieldId::DestPort => (34, 2),
            FieldId::DestAddr => (36, 16),
            FieldId::DestFlags => return Some(self.dest_flags),
            FieldId::DestWeight => (60, 4),
            FieldId::DestSvc => (self.dest_svc, 8),
            FieldId::SvcAf => (36, 2),
            FieldId::SvcProtocol => (38, 2),
            FieldId::SvcAddr => (40, 16),
            FieldId::SvcPort => (56, 2),
            FieldId::SvcFwmark => (60, 4),
            FieldId::SvcIpvs => (80, 8),
            FieldId::UdestWeight => (24, 4),
            FieldId::IpvsNet => (self.ipvs_net, 8),
            FieldId::NetInum
            | FieldId::SkbHead
            | FieldId::SkbNetworkHeader
            | FieldId::SkbTransportHeader
            | FieldId::SkbTail => return None,
        };
        Some(Field { offset, width })
    }
}

/// Major and minor version that `release` (as in `uname -r`) begins with.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_selects_its_rows() {
        assert_eq!(version("5.10.0-32-cloud-amd64"), Some((5, 10)));
        assert_eq!(version("7.3-cloud-amd64"), Some((7, 3)));
        assert_eq!(version("6.1"), Some((6, 1)));
        for broken in ["", "6", "six.one", "6.", ".1", "99999999999.1"] {
            assert_eq!(version(broken), None, "{broken:?}");
        }
        if cfg!(target_arch = "x86_64") {
            assert_eq!(candidates("5.10.223")[0], TO_6_1);
            assert_eq!(candidates("5.15.0-91-generic")[0], TO_6_1);
            assert_eq!(candidates("6.18.15")[0], TO_6_18);
        }
        for unknown in ["5.4.0", "4.19.0", "7.0.1", "6.19.2", "garbage"] {
            assert!(candidates(unknown).is_empty(), "{unknown}");
        }
    }

    #[test]
    fn a_row_has_each_field_of_ip_vs_and_nothing_else() {
        for row in [TO_6_1, TO_6_1_CFLAGS, TO_6_18, TO_6_18_CFLAGS] {
            for &id in FieldId::ALL {
                let elsewhere = matches!(id.structure(), "net" | "sk_buff");
                assert_eq!(row.field(id).is_none(), elsewhere, "{id:?}");
            }
        }
    }
}
