//! The kernel features that watching needs.

use std::path::Path;

use crate::failure::Failure;

/// A feature and a file that is there with it.
struct Feature {
    file: &'static str,
    name: &'static str,
}

const NEEDED: [Feature; 2] = [
    Feature {
        file: "proc/sys/kernel/unprivileged_bpf_disabled",
        name: "eBPF (CONFIG_BPF_SYSCALL)",
    },
    Feature {
        file: "sys/bus/event_source/devices/kprobe/type",
        name: "kprobes (CONFIG_KPROBE_EVENTS)",
    },
];

/// A file system that the kernel tells of itself in, with a file that it always has.
struct Mount {
    place: &'static str,
    file: &'static str,
    kind: &'static str,
}

const PROC: Mount = Mount {
    place: "/proc",
    file: "proc/version",
    kind: "proc",
};
const SYS: Mount = Mount {
    place: "/sys",
    file: "sys/kernel",
    kind: "sysfs",
};

/// Checks what no attempt would tell as clearly.
///
/// # Errors
/// [`Failure::Missing`] naming the feature.
pub fn check_features() -> Result<(), Failure> {
    features(Path::new("/"))
}

/// Checks that `/proc` is there: without it what fails looks like something else.
///
/// # Errors
/// [`Failure::Missing`] when it is not mounted.
pub fn check_proc() -> Result<(), Failure> {
    mounted(Path::new("/"), &PROC)
}

fn features(root: &Path) -> Result<(), Failure> {
    mounted(root, &PROC)?;
    mounted(root, &SYS)?;
    for Feature { file, name } in NEEDED {
        if !root.join(file).exists() {
            return Err(Failure::Missing(format!(
                "this kernel has no {name}: /{file} does not exist; boot a kernel built with it"
            )));
        }
    }
    Ok(())
}

fn mounted(root: &Path, mount: &Mount) -> Result<(), Failure> {
    let Mount { place, file, kind } = mount;
    if root.join(file).exists() {
        return Ok(());
    }
    Err(Failure::Missing(format!(
        "{place} is not mounted: /{file} does not exist; run mount -t {kind} {kind} {place}"
    )))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_system_that_is_not_mounted_is_no_fault_of_the_kernel() {
        let root = tempfile::tempdir().unwrap();
        let place = |file: &str| {
            let line = features(root.path()).unwrap_err().to_string();
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
            line
        };
        assert!(place(PROC.file).starts_with("/proc is not mounted"));
        assert!(place(SYS.file.replace("kernel", "kernel/x").as_str()).starts_with("/sys is not"));
        assert!(place(NEEDED[0].file).starts_with("this kernel has no eBPF"));
        assert!(place(NEEDED[1].file).starts_with("this kernel has no kprobes"));
        assert!(features(root.path()).is_ok());
    }
}
