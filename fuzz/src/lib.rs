//! What is fuzzed, without the rest of the guard and its eBPF programs.

#[path = "../../ipvs-guard/src/kernel/btf.rs"]
pub mod btf;
