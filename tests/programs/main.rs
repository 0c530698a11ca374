//! The packet programs on the kernel of this machine, which needs no IPVS for them: it
//! loads them, and runs them on packets of every form (`BPF_PROG_TEST_RUN`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "a test tells its figures")]

#[path = "../guest/forms.rs"]
mod forms;
mod support;
