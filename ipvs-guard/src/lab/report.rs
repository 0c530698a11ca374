//! What the lab found, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::Step;
use super::client::{Attempt, Outcome};

/// What the lab found: a row for each action that was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Release of the kernel it ran on; none when the kernel does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Connections made before the backend was withdrawn, all of them answered.
    pub before: usize,
    /// Milliseconds from its withdrawal to the connections after it.
    pub silence_ms: f64,
    /// One for each action.
    pub rows: Vec<Row>,
}

/// What became of the connections after the backend was withdrawn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was done about stale SYNs.
    pub action: Step,
    /// Connections made from the source ports used before.
    pub connections: usize,
    /// Those that were answered.
    pub answered: usize,
    /// Those that were not.
    pub failed: usize,
    /// The latter by what the client saw: an errno's name, `timed out`.
    pub failures: BTreeMap<String, usize>,
    /// How long the client waited for its failure; none without failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_fail: Option<Spread>,
    /// How long the answered ones took; none when none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_answer: Option<Spread>,
    /// What became of the withdrawn backend's entries.
    pub drain: Drain,
}

/// Durations of many, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The shortest.
    pub min_ms: f64,
    /// The middle one, the longer of two.
    pub median_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

/// How far the withdrawn backend has drained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Drain {
    /// Whether no entry is left.
    pub drained: bool,
    /// Milliseconds since its weight became 0.
    pub after_ms: f64,
    /// Entries in ESTABLISHED, or half open.
    pub active: u32,
    /// Entries in other states.
    pub inactive: u32,
}

impl Report {
    pub(super) fn new(before: usize, silence: Duration, rows: Vec<Row>) -> Self {
        let kernel = nix::sys::utsname::uname().ok();
        let kernel = kernel.map(|name| name.release().to_string_lossy().into_owned());
        Self {
            kernel,
            before,
            silence_ms: ms(silence),
            rows,
        }
    }

    /// The report as a table, closed by a newline.
    pub fn human(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header([
            "action",
            "connections",
            "answered",
            "failed",
            "failures",
            "time to fail (min / median / max)",
            "withdrawn backend",
        ]);
        for row in &self.rows {
            table.add_row(row.cells());
        }
        let kernel = self.kernel.as_deref().unwrap_or("unknown");
        let later = if self.silence_ms == 0.0 {
            String::new()
        } else {
            format!(" {:.1} s later", self.silence_ms / 1000.0)
        };
        format!(
            "kernel {kernel}: {} connections answered, backend withdrawn, same source ports \
             again{later}\n{table}\n",
            self.before
        )
    }
}

impl Row {
    pub(super) fn new(action: Step, attempts: &[Attempt], drain: Drain) -> Self {
        let (answered, failed): (Vec<&Attempt>, Vec<&Attempt>) =
            attempts.iter().partition(|attempt| attempt.is_answered());
        let mut failures = BTreeMap::new();
        for attempt in &failed {
            *failures.entry(name(attempt.outcome)).or_default() += 1;
        }
        Self {
            action,
            connections: attempts.len(),
            answered: answered.len(),
            failed: failed.len(),
            failures,
            time_to_fail: Spread::of(&failed),
            time_to_answer: Spread::of(&answered),
            drain,
        }
    }

    fn cells(&self) -> [String; 7] {
        let failures: Vec<_> = self
            .failures
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        [
            self.action.name().to_owned(),
            self.connections.to_string(),
            self.answered.to_string(),
            self.failed.to_string(),
            if failures.is_empty() {
                "-".to_owned()
            } else {
                failures.join(", ")
            },
            self.time_to_fail
                .map_or_else(|| "-".to_owned(), |spread| spread.to_string()),
            self.drain.to_string(),
        ]
    }
}

fn name(outcome: Outcome) -> String {
    outcome.to_string()
}

impl Spread {
    fn of(attempts: &[&Attempt]) -> Option<Self> {
        let mut times: Vec<Duration> = attempts.iter().map(|attempt| attempt.duration).collect();
        times.sort_unstable();
        Some(Self {
            min_ms: ms(*times.first()?),
            median_ms: ms(*times.get(times.len() / 2)?),
            max_ms: ms(*times.last()?),
        })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} / {:.1} / {:.1} ms",
            self.min_ms, self.median_ms, self.max_ms
        )
    }
}

impl Drain {
    pub(super) fn new(after: Duration, active: u32, inactive: u32) -> Self {
        Self {
            drained: active == 0 && inactive == 0,
            after_ms: ms(after),
            active,
            inactive,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.drained
    }
}

impl fmt::Display for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.after_ms / 1000.0;
        if self.drained {
            write!(f, "drained {seconds:.1} s after its weight became 0")
        } else {
            write!(
                f,
                "not drained {seconds:.1} s after its weight became 0: {} active, {} inactive",
                self.active, self.inactive
            )
        }
    }
}

/// Milliseconds to the microsecond: more digits would say nothing.
fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    fn report() -> Report {
        let attempt = |port, outcome, ms| Attempt {
            port,
            outcome,
            duration: Duration::from_millis(ms),
        };
        let unreachable = Outcome::Failed {
            errno: Errno::EHOSTUNREACH,
        };
        let attempts = [
            attempt(1, Outcome::Answered { backend: 1 }, 3),
            attempt(2, unreachable, 3071),
            attempt(3, unreachable, 3069),
            attempt(4, Outcome::TimedOut, 10_000),
        ];
        let row = Row::new(
            Step::None,
            &attempts,
            Drain::new(Duration::from_millis(13_040), 0, 50),
        );
        Report {
            kernel: Some("6.1.0".to_owned()),
            before: 4,
            silence_ms: 0.0,
            rows: vec![row],
        }
    }

    #[test]
    fn failures_are_counted_by_what_the_client_saw() {
        let row = &report().rows[0];
        assert_eq!((row.connections, row.answered, row.failed), (4, 1, 3));
        assert_eq!(
            row.failures
                .iter()
                .map(|(name, n)| format!("{n} {name}"))
                .collect::<Vec<_>>(),
            ["2 EHOSTUNREACH", "1 timed out"]
        );
        assert_eq!(
            row.time_to_fail,
            Some(Spread {
                min_ms: 3069.0,
                median_ms: 3071.0,
                max_ms: 10_000.0
            })
        );
    }

    #[test]
    fn a_table_has_a_line_per_action() {
        let text = report().human();
        assert!(text.starts_with("kernel 6.1.0: 4 connections answered"));
        let row = text
            .lines()
            .find(|line| line.trim_start().starts_with("none"))
            .unwrap();
        assert!(row.contains("2 EHOSTUNREACH, 1 timed out"));
        assert!(row.contains("3069.0 / 3071.0 / 10000.0 ms"));
        assert!(
            row.contains("not drained 13.0 s after its weight became 0: 0 active, 50 inactive")
        );
    }

    #[test]
    fn json_leaves_out_what_is_not_known() {
        let mut report = report();
        report.kernel = None;
        report.rows[0].time_to_fail = None;
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value["rows"][0]["action"], "none");
        assert_eq!(value["rows"][0]["failures"]["EHOSTUNREACH"], 2);
        assert!(value.get("kernel").is_none() && value["rows"][0].get("time_to_fail").is_none());
    }
}
