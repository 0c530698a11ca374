//! The command line turned into checked values.

mod address;
mod config_file;
mod netns;
mod origin;
mod value;

pub use address::{Client, Target};
pub use config_file::{ConfigError, apply, path_from};
pub use netns::Scope;
pub use origin::{refused, with_origin};
pub use value::{duration, listen_address, log_level, size, time};
