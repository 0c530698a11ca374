//! The image, read by skopeo, and run with nothing but what is in it.

use std::{
    fs,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::chroot::{FILES, given, output};

#[test]
fn another_reader_finds_the_program_and_it_runs_alone() {
    let archive = given("IPVS_GUARD_IMAGE");
    let size = fs::metadata(&archive).unwrap().len();
    eprintln!("image: {size} bytes");
    assert!(size <= 15_000_000);
    let files = tempfile::tempdir().unwrap();
    fs::copy(&archive, files.path().join("image.tar")).unwrap();
    let source = format!("oci-archive:{FILES}/image.tar");
    let inspected = output(files.path(), &["skopeo", "inspect", &source]);
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["Architecture"], "amd64");
    assert_eq!(inspected["Os"], "linux");
    assert_eq!(inspected["Layers"].as_array().unwrap().len(), 1);
    let config = output(files.path(), &["skopeo", "inspect", "--config", &source]);
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(
        config["config"]["Entrypoint"],
        serde_json::json!(["/ipvs-guard"])
    );

    // Skopeo checks every digest when it copies.
    let copied = format!("dir:{FILES}/copy");
    let accept = ["--insecure-policy", "copy", &source, &copied];
    output(files.path(), &[&["skopeo"], &accept[..]].concat());
    let layer = inspected["Layers"][0].as_str().unwrap();
    let layer = files
        .path()
        .join("copy")
        .join(layer.trim_start_matches("sha256:"));
    let root = files.path().join("root");
    fs::create_dir(&root).unwrap();
    let unpacked = Command::new("tar")
        .args(["--extract", "--gzip", "--file"])
        .arg(layer)
        .arg("--directory")
        .arg(&root)
        .status()
        .unwrap();
    assert!(unpacked.success());
    let names: Vec<_> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["ipvs-guard"]);
    let said = Command::new("chroot")
        .arg(&root)
        .args(["/ipvs-guard", "--version"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert_eq!(said, format!("ipvs-guard {}\n", env!("CARGO_PKG_VERSION")));
}
