//! Any file that a user may give with `--btf`.
#![no_main]

use std::sync::{Arc, LazyLock};

use ipvs_guard_common::layout::FieldId;
use ipvs_guard_fuzz::btf::Btf;
use libfuzzer_sys::fuzz_target;

static KERNEL: LazyLock<Option<Arc<Btf>>> = LazyLock::new(|| {
    let bytes = include_bytes!("../../ipvs-guard/src/kernel/testdata/6.1.176/vmlinux");
    Btf::parse(bytes.to_vec(), None).ok().map(Arc::new)
});

fuzz_target!(|data: &[u8]| {
    if let Ok(btf) = Btf::from_bytes(data, || KERNEL.clone()) {
        for &id in FieldId::ALL {
            if let Ok(field) = btf.field(id.structure(), id.path()) {
                assert!(matches!(field.width, 1 | 2 | 4 | 8 | 16));
            }
        }
    }
});
