//! Whether the agent can work here, asked before anything is attached; each
//! answer that is no says what would help.

mod btf;
mod features;
mod privilege;
pub mod proof;

pub use self::{
    btf::check_btf,
    features::{check_features, check_proc},
    privilege::{check_privileges, check_user_namespace},
};
