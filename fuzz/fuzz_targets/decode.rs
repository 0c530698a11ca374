//! Any record that may come out of the ring buffer.
#![no_main]

use ipvs_guard_common::decode;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match decode::record(data) {
        Ok(record) => drop(format!("{record:?}")),
        Err(e) => assert!(!e.to_string().is_empty()),
    }
});
