//! Sinks against the receivers that people run, on this machine and on loopback.

#[cfg(test)]
mod support;

#[cfg(test)]
mod journald;
#[cfg(test)]
mod rsyslog;
#[cfg(test)]
mod trouble;
