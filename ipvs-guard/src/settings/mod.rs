//! The command line turned into checked values.

mod address;
mod config_file;
mod netns;
mod origin;
mod syslog;
mod value;

pub use address::{Client, Target};
pub use config_file::{ConfigError, apply, faults, path_from};
pub use netns::Scope;
pub use origin::{one_line, refused, section, with_origin};
pub use syslog::{Remote, SyslogTarget, TlsFiles};
pub use value::{duration, listen_address, log_level, size, switch, time};
