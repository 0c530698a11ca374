//! How long each test of a guest takes, by when its line comes out.

use std::time::{Duration, Instant};

/// How many of the slowest are told.
const TOLD: usize = 8;

/// Times tests by the runner's lines, "test NAME ... ", with one test at a time.
#[derive(Debug, Default)]
pub(super) struct TestClock {
    line: Vec<u8>,
    running: Option<(String, Instant)>,
    took: Vec<(String, Duration)>,
}

impl TestClock {
    /// Takes the output as it comes.
    pub(super) fn observe(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.line.clear();
                continue;
            }
            self.line.push(*byte);
            // The runner writes the name when the test begins, its outcome when it has ended.
            if self.line.ends_with(b" ... ") || self.line.starts_with(b"test result:") {
                self.next();
                self.line.clear();
            }
        }
    }

    fn next(&mut self) {
        let now = Instant::now();
        if let Some((name, since)) = self.running.take() {
            self.took.push((name, now - since));
        }
        let text = String::from_utf8_lossy(&self.line);
        if let Some(name) = text.strip_prefix("test ")
            && let Some(name) = name.strip_suffix(" ... ")
        {
            self.running = Some((name.to_owned(), now));
        }
    }

    /// The slowest tests, the slowest first.
    pub(super) fn slowest(&self) -> Vec<(&str, Duration)> {
        let mut all: Vec<_> = self
            .took
            .iter()
            .map(|(name, took)| (name.as_str(), *took))
            .collect();
        all.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
        all.truncate(TOLD);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_told_from_what_they_print() {
        let mut clock = TestClock::default();
        for part in [
            "running 2 tests\ntest a::b ",
            "... figure: 1 ... 2\nok\ntest c",
            " ... ok\n\ntest result: ok.",
        ] {
            clock.observe(part.as_bytes());
        }
        let mut names: Vec<_> = clock.slowest().into_iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        assert_eq!(names, ["a::b", "c"]);
    }
}
