//! Which program goes to which kernel function.

use super::load::{BpfError, Loaded};
use crate::kernel::symbols::{Hook, Symbols};

/// What was attached, for the user and for `ipvs_guard_probe_attached`.
#[derive(Debug, Default)]
pub struct Attachments {
    /// Program and kernel function.
    pub done: Vec<(&'static str, &'static str)>,
}

impl Attachments {
    /// Attaches `program` to every function that `symbols` has for `hook`.
    ///
    /// # Errors
    /// [`BpfError::Symbol`] when the kernel has no such function,
    /// [`BpfError::Attach`] when it refuses the probe.
    pub fn add(
        &mut self,
        loaded: &mut Loaded,
        symbols: &Symbols,
        hook: Hook,
        program: &'static str,
    ) -> Result<(), BpfError> {
        let names = symbols
            .resolve(hook)
            .map_err(|source| BpfError::Symbol { program, source })?;
        for symbol in names {
            loaded
                .probe(program)?
                .attach(symbol, 0)
                .map_err(|error| BpfError::Attach {
                    program,
                    symbol,
                    source: error.into(),
                })?;
            self.done.push((program, symbol));
        }
        Ok(())
    }

    /// "PROGRAM on FUNCTION, …".
    pub fn summary(&self) -> String {
        if self.done.is_empty() {
            return "no probe needed".into();
        }
        let mut parts = Vec::new();
        for (program, symbol) in &self.done {
            parts.push(format!("{program} on {symbol}"));
        }
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_never_empty() {
        let mut attachments = Attachments::default();
        assert_eq!(attachments.summary(), "no probe needed");
        attachments.done.push(("commit", "f"));
        assert_eq!(attachments.summary(), "commit on f");
    }
}
