//! A wrong layout is refused by the proof, and the field is named.

use ipvs_guard::{
    kernel::{
        layout::{DEST_AVAILABLE, Resolved, Source, resolve},
        symbols::{Host, Symbols},
    },
    preflight::proof::{ProofError, prove},
};
use ipvs_guard_common::layout::{Field, FieldId, KernelLayout};

use crate::support::{load_ipvs, thorough};

/// The layout that the agent would take, and the functions to probe.
fn proved() -> (KernelLayout, Symbols) {
    load_ipvs();
    let symbols = Symbols::read(&Host::default()).unwrap();
    let Resolved { layout, .. } = resolve(&Source::running(None).unwrap()).unwrap();
    prove(&layout, &symbols, DEST_AVAILABLE).unwrap();
    (layout, symbols)
}

fn assert_refused(layout: &KernelLayout, symbols: &Symbols, id: FieldId, wrong: Field) {
    let mut changed = *layout;
    changed.set(id, wrong);
    match prove(&changed, symbols, DEST_AVAILABLE) {
        Err(error @ ProofError::Field { .. }) => {
            let name = format!("{}.{}", id.structure(), id.path());
            let text = error.to_string();
            assert!(text.contains(&name), "{name} at {wrong:?}: {text}");
        }
        other => panic!("{id:?} at {wrong:?}: {other:?}"),
    }
}

/// One of each structure, for kernels where not every field is tried.
const SOME: [FieldId; 8] = [
    FieldId::ConnAf,
    FieldId::ConnState,
    FieldId::ConnDest,
    FieldId::DestFlags,
    FieldId::SvcAddr,
    FieldId::UdestWeight,
    FieldId::NetInum,
    FieldId::SkbTail,
];

/// Each field, moved to where another one is. An emulated machine takes its time
/// to load programs, so all of them only where it is asked for.
#[test]
fn a_field_in_the_wrong_place_is_refused() {
    let (layout, symbols) = proved();
    let every = thorough();
    for &id in if every { FieldId::ALL } else { &SOME } {
        let Field { offset, width } = layout.field(id);
        let wrong = Field {
            offset: offset + width.max(4),
            width,
        };
        assert_refused(&layout, &symbols, id, wrong);
    }
}

/// A width of another kernel: `af` is 2 bytes before 7.0 and 1 byte from then on.
#[test]
fn a_wrong_width_is_refused() {
    let (layout, symbols) = proved();
    let Field { offset, width } = layout.field(FieldId::ConnAf);
    let wrong = Field {
        offset,
        width: if width == 1 { 4 } else { width * 2 },
    };
    assert_refused(&layout, &symbols, FieldId::ConnAf, wrong);
}

/// An offset far outside of any structure cannot be read, or reads nonsense.
#[test]
fn a_far_offset_is_refused() {
    let (layout, symbols) = proved();
    for id in [FieldId::ConnIpvs, FieldId::ConnDest, FieldId::SkbHead] {
        let wrong = Field {
            offset: 65_528,
            width: 8,
        };
        assert_refused(&layout, &symbols, id, wrong);
    }
}
