//! Counts of what passed and failed.

use std::process::ExitCode;

use crate::output::{print_line, say};

/// What has passed and failed so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    failures: Vec<String>,
}

impl Tally {
    /// One step that passes or fails as a whole.
    pub(crate) fn step(&mut self, name: &str, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.failures.push(name.to_owned());
        }
    }

    /// The closing lines of Rust's test runner in `output`; a run without one,
    /// or one that counted no test, has failed.
    pub(crate) fn tests(&mut self, name: &str, output: &str, succeeded: bool) {
        let (mut passed, mut failed) = (0, 0);
        for line in output.lines() {
            let Some(counts) = line.trim_start().strip_prefix("test result: ") else {
                continue;
            };
            passed += count(counts, " passed");
            failed += count(counts, " failed");
        }
        self.passed += passed;
        self.failed += failed;
        if failed > 0 {
            self.failures.push(format!("{name}: {failed} tests"));
        } else if !succeeded || passed == 0 {
            self.step(&format!("{name}: did not run to its end"), false);
        }
    }

    /// Says what failed, prints the counts, and gives the exit code.
    pub(crate) fn close(self) -> ExitCode {
        for failure in &self.failures {
            say!("failed: {failure}");
        }
        print_line(&format!("{} passed, {} failed", self.passed, self.failed));
        if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// The number before `what` in "ok. 12 passed; 0 failed; …".
fn count(counts: &str, what: &str) -> u64 {
    counts
        .split(what)
        .next()
        .filter(|before| before.len() < counts.len())
        .and_then(|before| before.rsplit([' ', ';']).next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runners_closing_lines_are_read() {
        let mut tally = Tally::default();
        tally.tests(
            "a",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured\n\
             test result: FAILED. 3 passed; 2 failed; 0 ignored",
            false,
        );
        assert_eq!((tally.passed, tally.failed), (15, 2));
    }

    #[test]
    fn a_run_that_tested_nothing_has_failed() {
        let mut tally = Tally::default();
        tally.tests("a", "test result: ok. 0 passed; 0 failed", true);
        tally.tests("b", "", true);
        tally.tests("c", "test result: ok. 1 passed; 0 failed", false);
        assert_eq!((tally.passed, tally.failed), (1, 3));
    }
}
