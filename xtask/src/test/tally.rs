//! Counts of what passed and failed.

use std::process::ExitCode;

use crate::output::{print_line, say};

/// What has passed and failed so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    failures: Vec<String>,
    unsteady: Vec<String>,
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
        let (passed, failed) = (passed(output), sum(output, " failed"));
        self.passed += passed;
        self.failed += failed;
        if failed > 0 {
            self.failures.push(failed_tests(name, failed));
        } else if !succeeded || passed == 0 {
            self.step(&format!("{name}: did not run to its end"), false);
        }
    }

    /// Tests of `name` that [`Tally::tests`] counted as failed, all of them, and that
    /// passed when they ran once more.
    pub(crate) fn unsteady(&mut self, name: &str, tests: &[&str]) {
        self.failures
            .retain(|failure| *failure != failed_tests(name, tests.len() as u64));
        self.failed -= tests.len() as u64;
        self.passed += tests.len() as u64;
        for test in tests {
            self.unsteady.push(format!("{name}: {test}"));
        }
    }

    /// Says what failed, prints the counts, and gives the exit code.
    pub(crate) fn close(self) -> ExitCode {
        for failure in &self.failures {
            say!("failed: {failure}");
        }
        for test in &self.unsteady {
            say!("unsteady, failed once and passed alone: {test}");
        }
        print_line(&format!("{} passed, {} failed", self.passed, self.failed));
        if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

fn failed_tests(name: &str, failed: u64) -> String {
    format!("{name}: {failed} tests")
}

/// How many tests passed by the closing lines of Rust's test runner in `output`.
pub(super) fn passed(output: &str) -> u64 {
    sum(output, " passed")
}

/// The tests that Rust's test runner lists as failed at the end of `output`.
pub(super) fn failures(output: &str) -> Vec<&str> {
    let Some((before, _)) = output.rsplit_once("test result: FAILED") else {
        return Vec::new();
    };
    let Some((_, list)) = before.rsplit_once("failures:") else {
        return Vec::new();
    };
    list.split_whitespace().collect()
}

/// The sum of `what` over the closing lines in `output`.
fn sum(output: &str, what: &str) -> u64 {
    output
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("test result: "))
        .map(|counts| count(counts, what))
        .sum()
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
    fn what_passes_the_second_time_is_told_and_does_not_fail_the_run() {
        let output = "failures:\n\nfailures:\n    a::b\n    c::d\n\n\
                      test result: FAILED. 3 passed; 2 failed; 0 ignored";
        assert_eq!(failures(output), ["a::b", "c::d"]);
        assert_eq!(failures("test result: ok. 3 passed; 0 failed"), [""; 0]);
        let mut tally = Tally::default();
        tally.tests("kernel", output, false);
        tally.tests("other", output, false);
        tally.unsteady("kernel", &failures(output));
        assert_eq!((tally.passed, tally.failed), (8, 2));
        assert_eq!(tally.failures, ["other: 2 tests"]);
        assert_eq!(tally.unsteady, ["kernel: a::b", "kernel: c::d"]);
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
