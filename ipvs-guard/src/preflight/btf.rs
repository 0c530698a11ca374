//! The user's own BTF file.

use std::path::Path;

use crate::{
    failure::Failure,
    kernel::layout::{self, Source},
};

/// Checks that the file of `--btf` serves, if there is one: a wrong path is to
/// be told at once, not when ip_vs comes.
///
/// # Errors
/// [`Failure::Usage`] naming what is wrong with it.
pub fn check_btf(file: Option<&Path>) -> Result<(), Failure> {
    if let Some(file) = file {
        let source = Source::running(Some(file.into()))
            .map_err(|error| Failure::Internal(anyhow::anyhow!("uname: {error}")))?;
        layout::resolve(&source)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_is_a_usage_error() {
        let failure = check_btf(Some(Path::new("/nonexistent.btf"))).unwrap_err();
        assert_eq!(failure.code(), 2);
        assert!(failure.to_string().starts_with("--btf /nonexistent.btf:"));
        assert!(check_btf(None).is_ok());
    }
}
