//! What each probe does.

pub(crate) mod commit;
pub(crate) mod config;
pub(crate) mod enforce;
pub(crate) mod expire;
pub(crate) mod prove;
pub(crate) mod trace;
