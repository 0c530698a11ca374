//! Plain values, with errors that say what to write.

use std::time::Duration;

use log::LevelFilter;

/// A year and a day: an end further off is none, and no clock overflows.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// A log level.
///
/// # Errors
/// A text that lists the levels.
pub fn log_level(text: &str) -> Result<LevelFilter, String> {
    text.parse()
        .map_err(|_| "no such level; the levels are error, warn, info, debug and trace".into())
}

/// A time such as 30s or 5m, which may be 0s.
///
/// # Errors
/// A text that says what to write.
pub fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write 30s, 5m or 1h30m"))?;
    if time > LONGEST {
        return Err("longer than 366 days; give less".into());
    }
    Ok(time)
}

/// How long something is to go on: some time, or nothing would happen.
///
/// # Errors
/// A text that says what to write.
pub fn duration(text: &str) -> Result<Duration, String> {
    let duration = time(text)?;
    if duration.is_zero() {
        return Err("no time at all; give some, or leave it out to go on until SIGINT".into());
    }
    Ok(duration)
}

/// Bytes, such as 100MB or 64MiB; not 0.
///
/// # Errors
/// What is wrong with `text`.
pub fn size(text: &str) -> Result<u64, String> {
    match text.parse::<bytesize::ByteSize>() {
        Ok(size) if size.as_u64() > 0 => Ok(size.as_u64()),
        Ok(_) => Err("no bytes at all; give some, or leave it out to never rotate".into()),
        Err(_) => Err("no size; give one such as 100MB or 64MiB".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_with_a_unit() {
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("100MB"), Ok(100_000_000));
        assert_eq!(size("4096"), Ok(4_096));
        assert!(size("0").unwrap_err().contains("no bytes"));
        assert!(size("much").unwrap_err().contains("64MiB"));
    }

    #[test]
    fn a_level_that_is_none_lists_them() {
        assert_eq!(log_level("debug"), Ok(LevelFilter::Debug));
        assert!(log_level("loud").unwrap_err().contains("error, warn, info"));
    }

    #[test]
    fn durations_have_bounds() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert!(duration("1y").is_ok());
        assert_eq!(time("0s"), Ok(Duration::ZERO));
        for (text, expect) in [
            ("0", "no time at all"),
            ("0s", "no time at all"),
            ("367days", "longer than 366 days"),
            ("100000000y", "longer than 366 days"),
            ("99999999999999999999y", "write 30s"),
            ("10", "write 30s"),
            ("soon", "write 30s"),
        ] {
            let error = duration(text).unwrap_err();
            assert!(error.contains(expect), "{text}: {error}");
        }
    }
}
