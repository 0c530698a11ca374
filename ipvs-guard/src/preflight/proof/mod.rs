//! Proof of a kernel layout on a live connection.
//!
//! Wrong offsets would be silent: the probes would read other fields and report
//! nonsense. So before anything is reported, services, destinations and SYNs
//! whose every field is known are made in a private network namespace, and
//! what the probes read of them is compared.

mod expect;
mod stage;

use std::fmt;

use aya::maps::{MapData, RingBuf};
use ipvs_guard_common::{
    config::PROVE,
    decode::{self, Record},
    filter::Filter,
    guard::Policy,
    layout::{FieldId, KernelLayout},
};
use thiserror::Error;

use self::stage::{Case, Stage};
use crate::{
    bpf::{Attachments, BpfError, Loaded, Options},
    kernel::symbols::{Hook, Symbols},
};

/// Why a layout is not proved.
#[derive(Debug, Error)]
pub enum ProofError {
    /// A field does not hold what it must.
    #[error(
        "the kernel layout is wrong at {}: {reason} ({case}); give this kernel's BTF with --btf FILE",
        Suspects(suspects)
    )]
    Field {
        /// The field, or those of which one must be wrong.
        suspects: Vec<FieldId>,
        /// What was expected and what was read.
        reason: String,
        /// In which part of the proof.
        case: &'static str,
    },
    /// A probe did not fire although its function was called.
    #[error("proving the kernel layout: {0} was not seen by its probe")]
    Unseen(&'static str),
    /// The private namespace or what is in it cannot be made.
    #[error("proving the kernel layout: {0}")]
    Stage(#[source] anyhow::Error),
    /// The programs cannot be loaded or attached.
    #[error("proving the kernel layout: {0}")]
    Bpf(#[from] BpfError),
}

struct Suspects<'a>(&'a [FieldId]);

impl fmt::Display for Suspects<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, id) in self.0.iter().enumerate() {
            let or = if i == 0 { "" } else { " or " };
            write!(f, "{or}{}.{}", id.structure(), id.path())?;
        }
        Ok(())
    }
}

/// How often a refusal is doubted that packets of others may have caused.
const ATTEMPTS: u32 = 3;

/// Proves `layout` for IPv4 and, where the kernel's IPVS has it, for IPv6.
///
/// # Errors
/// [`ProofError::Field`] when the layout is wrong; the other variants when the
/// proof cannot be made.
pub fn prove(
    layout: &KernelLayout,
    symbols: &Symbols,
    available_bit: u32,
) -> Result<(), ProofError> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        let mut attempt = Attempt::new(layout, symbols)?;
        match attempt.run(available_bit) {
            Err(ProofError::Field { .. }) if attempt.crowded && left > 0 => {}
            outcome => return outcome,
        }
    }
}

/// One run of all cases.
struct Attempt {
    stage: Stage,
    ring: RingBuf<MapData>,
    /// Packets of others were seen as well: a refusal may be theirs.
    crowded: bool,
    _loaded: Loaded,
}

impl Attempt {
    fn new(layout: &KernelLayout, symbols: &Symbols) -> Result<Self, ProofError> {
        let stage = Stage::new().map_err(ProofError::Stage)?;
        let mut loaded = Loaded::new(&Options {
            layout,
            mode: PROVE,
            filter: Filter::default(),
            proof_comm: stage.comm(),
            policy: Policy::default(),
        })?;
        let ring = loaded.ring_buffer()?;
        let mut attachments = Attachments::default();
        attachments.add(&mut loaded, symbols, Hook::Commit, "commit")?;
        attachments.add(&mut loaded, symbols, Hook::ConfigUpdate, "dest_update")?;
        attachments.add(&mut loaded, symbols, Hook::Delete, "dest_delete")?;
        Ok(Self {
            stage,
            ring,
            crowded: false,
            _loaded: loaded,
        })
    }

    fn run(&mut self, available_bit: u32) -> Result<(), ProofError> {
        let netns = self.stage.netns();
        for case in self.stage.cases().to_vec() {
            let [first, second] = case.seqs;
            self.stage.add(&case).map_err(ProofError::Stage)?;
            let records = self.change(&case, "adding a destination")?;
            expect::added(&records, &case, netns, available_bit)?;
            let records = self.syn(&case, first)?;
            expect::first_syn(&records, &case, netns, available_bit)?;
            self.stage.drain(&case).map_err(ProofError::Stage)?;
            let records = self.change(&case, "changing a weight")?;
            expect::drained(&records, &case, available_bit)?;
            let records = self.syn(&case, second)?;
            expect::second_syn(&records, &case)?;
            self.stage.remove(&case).map_err(ProofError::Stage)?;
            let records = self.change(&case, "removing a destination")?;
            expect::removed(&records, &case, available_bit)?;
        }
        Ok(())
    }

    /// Sends a SYN; what the probes read of it.
    fn syn(&mut self, case: &Case, seq: u32) -> Result<Vec<Record>, ProofError> {
        self.stage.send_syn(case, seq).map_err(ProofError::Stage)?;
        let records = self.records();
        self.crowded |= expect::packets(&records) > 1;
        let records = expect::own(records, seq);
        checked(records, case, "a SYN")
    }

    /// What the probes read of a change that was just made.
    fn change(&mut self, case: &Case, what: &'static str) -> Result<Vec<Record>, ProofError> {
        let records = self.records();
        self.crowded |= expect::packets(&records) > 0;
        checked(records, case, what)
    }

    fn records(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        while let Some(item) = self.ring.next() {
            records.extend(decode::record(&item).ok());
        }
        records
    }
}

fn checked(
    records: Vec<Record>,
    case: &Case,
    what: &'static str,
) -> Result<Vec<Record>, ProofError> {
    expect::no_fault(&records, case.name)?;
    if records.is_empty() {
        return Err(ProofError::Unseen(what));
    }
    Ok(records)
}
