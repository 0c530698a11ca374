//! How a command fails: one line and an exit code.

use std::fmt;

use crate::kernel::layout::LayoutError;

/// A failure that the user sees, by what the user can do about it.
#[derive(Debug)]
pub enum Failure {
    /// Exit 1: as the command says.
    Negative(String),
    /// Exit 2: the command line, the environment or a file that it names is wrong.
    Usage(String),
    /// Exit 3: a privilege is missing.
    Privilege(String),
    /// Exit 4: IPVS or a kernel feature is missing.
    Missing(String),
    /// Exit 5: anything else.
    Internal(anyhow::Error),
}

impl Failure {
    /// The exit code.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Negative(_) => 1,
            Self::Usage(_) => 2,
            Self::Privilege(_) => 3,
            Self::Missing(_) => 4,
            Self::Internal(_) => 5,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = match self {
            Self::Negative(line)
            | Self::Usage(line)
            | Self::Privilege(line)
            | Self::Missing(line) => line.clone(),
            Self::Internal(error) => with_causes(error),
        };
        // One line, whatever a cause deep below put into its text.
        f.write_str(&line.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Internal(error)
    }
}

impl From<LayoutError> for Failure {
    fn from(error: LayoutError) -> Self {
        match error {
            LayoutError::BadFile { .. } => Self::Usage(error.to_string()),
            LayoutError::Missing { .. } => Self::Missing(error.to_string()),
        }
    }
}

/// An error and what caused it. Most errors end with the text of their cause
/// already, which `{:#}` would repeat.
fn with_causes(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.is_empty() {
            line = text;
        } else if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure::Internal(anyhow::anyhow!("a\nb").context("c"));
        assert_eq!(failure.to_string(), "c: a b");
        assert_eq!(failure.code(), 5);
    }

    #[test]
    fn a_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("open x: {source}")]
        struct Open {
            source: std::io::Error,
        }
        let source = std::io::Error::other("no luck");
        let failure = Failure::from(anyhow::Error::new(Open { source }).context("beginning"));
        assert_eq!(failure.to_string(), "beginning: open x: no luck");
    }
}
