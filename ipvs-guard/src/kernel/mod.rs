//! What must be known of the running kernel before a probe is attached: where
//! the fields of its structures are, and which functions it has.

pub mod btf;
pub mod layout;
pub mod symbols;
pub mod table;

#[cfg(test)]
mod encode;
#[cfg(test)]
mod tests;
