//! Plain values, with errors that say what to write.

use std::{net::SocketAddr, time::Duration};

use clap::builder::BoolishValueParser;
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

/// An address and port to listen on.
///
/// # Errors
/// A text that says what to write.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        Ok(_) => Err("port 0 is none that anybody could know of; give one such as 9470".into()),
        Err(_) => Err(
            "neither ADDR:PORT nor [ADDR]:PORT; write 127.0.0.1:9470, 0.0.0.0:9470 or [::]:9470"
                .into(),
        ),
    }
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

/// Reads a switch's variable: true, 1, yes, y, on, t, and their opposites.
pub fn switch() -> BoolishValueParser {
    BoolishValueParser::new()
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
    fn an_address_to_listen_on_has_a_port() {
        assert!(listen_address("127.0.0.1:9470").is_ok());
        assert!(listen_address("[::1]:9470").is_ok());
        for (text, expect) in [
            ("9470", "write 127.0.0.1:9470"),
            (":9470", "write 127.0.0.1:9470"),
            ("localhost:9470", "write 127.0.0.1:9470"),
            ("::1:9470", "write 127.0.0.1:9470"),
            ("127.0.0.1:0", "port 0"),
            ("127.0.0.1:70000", "write 127.0.0.1:9470"),
        ] {
            let error = listen_address(text).unwrap_err();
            assert!(error.contains(expect), "{text}: {error}");
        }
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
