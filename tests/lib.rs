//! Tests on real IPVS: `guest` is a program of tests that `cargo xtask test` runs
//! inside a virtual machine, on each kernel of the matrix; `receivers` is one that it
//! runs on this machine, against receivers from Debian's packages.
