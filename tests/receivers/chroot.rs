//! Programs of the unpacked packages, with their tree as root directory.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Where a program of the tree finds the files of its test.
pub(crate) const FILES: &str = "/mnt";

/// What `name` says; the tests cannot do without.
pub(crate) fn given(name: &str) -> PathBuf {
    let Some(path) = env::var_os(name) else {
        panic!(
            "{name} is not set: `cargo xtask test` runs these tests; by hand, as root, \
             IPVS_GUARD_RECEIVERS and IPVS_GUARD_HELM are what `cargo xtask setup receivers` \
             prints, IPVS_GUARD_IMAGE what `cargo xtask image` does"
        );
    };
    path.into()
}

/// What `program` of the tree says with `files` at [`FILES`]. It can write everywhere, and
/// nothing of that lasts but what it writes there.
pub(crate) fn run(files: &Path, program: &[&str]) -> Output {
    const ENTER: &str = r#"
        set -e
        tree=$1 files=$2 stage=$3
        shift 3
        mount -t tmpfs tmpfs "$stage"
        mkdir "$stage/upper" "$stage/work" "$stage/root"
        mount -t overlay overlay "$stage/root" \
            -o "lowerdir=$tree,upperdir=$stage/upper,workdir=$stage/work"
        cd "$stage/root"
        mkdir -p dev mnt proc run sys tmp var/tmp usr/local/bin
        # What the unit runs is there on a node.
        for program in usr/bin/kill usr/local/bin/ipvs-guard; do
            : > "$program"
            chmod 755 "$program"
        done
        mount --bind "$files" mnt
        mount --rbind /proc proc
        mount --rbind /sys sys
        mount --rbind /dev dev
        exec chroot . "$@"
    "#;
    let stage = tempfile::tempdir().unwrap();
    Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            ENTER,
            "sh",
        ])
        .arg(given("IPVS_GUARD_RECEIVERS"))
        .arg(files)
        .arg(stage.path())
        .args(program)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap()
}

/// Its standard output, when it succeeded.
pub(crate) fn output(files: &Path, program: &[&str]) -> String {
    let output = run(files, program);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// A path in the workspace.
pub(crate) fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// `program` of the tree with `files` at [`FILES`]; its process is the program's own.
pub(crate) fn command(program: &str, files: &Path) -> Command {
    const ENTER: &str = r#"mount --bind "$1" "$2/mnt" && mount -t tmpfs tmpfs "$2/tmp" && cd / &&
        root=$2 && shift 2 && exec chroot "$root" "$@""#;
    let tree = given("IPVS_GUARD_RECEIVERS");
    for place in ["mnt", "tmp"] {
        std::fs::create_dir_all(tree.join(place)).unwrap();
    }
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", ENTER, "sh"])
        .arg(files)
        .arg(tree)
        .arg(program);
    command
}
