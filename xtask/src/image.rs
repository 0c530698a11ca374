//! An OCI image of nothing but the static program, written without a registry, a daemon or root.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use flate2::{Compression, GzBuilder};
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, DescriptorBuilder, HistoryBuilder, ImageConfigurationBuilder,
    ImageIndexBuilder, ImageManifestBuilder, MediaType, Os, PlatformBuilder, RootFsBuilder,
    SCHEMA_VERSION, Sha256Digest,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::build;
use crate::cache::Cache;
use crate::output::{print_line, say};
use crate::process;

/// What an image may have at most.
const LARGEST: u64 = 15_000_000;
const ARCHIVE: &str = "target/dist/ipvs-guard.oci.tar";
const NAME: &str = "ipvs-guard";

/// Builds the program and an OCI image of it at target/dist/ipvs-guard.oci.tar
///
/// The same commit gives the same bytes: the time in it is SOURCE_DATE_EPOCH, else the commit's.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs `cargo xtask image`.
pub(crate) fn run(Args {}: &Args) -> Result<()> {
    let archive = archive(&Cache::open()?)?;
    let size = fs::metadata(&archive)?.len();
    let digest = hex(&Sha256::digest(fs::read(&archive)?));
    say!("built {}", archive.display());
    print_line(&format!("{size} bytes, sha256 {digest}"));
    Ok(())
}

/// The image of the program in this workspace, built.
pub(crate) fn archive(cache: &Cache) -> Result<PathBuf> {
    let program = fs::read(build::program(cache)?)?;
    let bytes = Image {
        program: &program,
        version: env!("CARGO_PKG_VERSION"),
        time: time()?,
    }
    .archive()?;
    let size = bytes.len() as u64;
    if size > LARGEST {
        bail!("the image has {size} bytes, and may have {LARGEST}");
    }
    let path = build::workspace().join(ARCHIVE);
    // A copy that is renamed: somebody may be reading the former one.
    let fresh = path.with_extension(std::process::id().to_string());
    fs::write(&fresh, bytes).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, &path)?;
    Ok(path)
}

fn time() -> Result<u64> {
    let text = match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => process::capture(
            Command::new("git")
                .args(["log", "-1", "--format=%ct"])
                .current_dir(build::workspace()),
        )
        .context("the time of the last commit; set SOURCE_DATE_EPOCH to do without")?,
    };
    let seconds = text.trim().parse();
    seconds.with_context(|| format!("SOURCE_DATE_EPOCH: '{}' are no seconds", text.trim()))
}

struct Image<'a> {
    program: &'a [u8],
    version: &'a str,
    /// Seconds since 1970 that stand wherever a time must stand.
    time: u64,
}

impl Image<'_> {
    /// The layout as one tar archive.
    fn archive(&self) -> Result<Vec<u8>> {
        let mut blobs = Blobs::default();
        let layer = self.layer()?;
        let content = Sha256::digest(&layer);
        let mut packed = GzBuilder::new().write(Vec::new(), Compression::best());
        packed.write_all(&layer)?;
        let layer = blobs.add(MediaType::ImageLayerGzip, packed.finish()?)?;
        let created = utc(self.time);
        let labels = HashMap::from([
            ("org.opencontainers.image.created".into(), created.clone()),
            (
                "org.opencontainers.image.licenses".into(),
                "MIT OR Apache-2.0".into(),
            ),
            ("org.opencontainers.image.title".into(), NAME.into()),
            (
                "org.opencontainers.image.version".into(),
                self.version.into(),
            ),
        ]);
        let config = ConfigBuilder::default()
            .entrypoint([format!("/{NAME}")])
            .cmd(["watch".to_owned()])
            // Capabilities of a container go to root only, so root it is, with the few it is given.
            .user("0:0")
            .build()?;
        let history = HistoryBuilder::default()
            .created(created.clone())
            .created_by("cargo xtask image")
            .build()?;
        let configuration = ImageConfigurationBuilder::default()
            .created(created)
            .architecture(Arch::Amd64)
            .os(Os::Linux)
            .config(config)
            .rootfs(
                RootFsBuilder::default()
                    .typ("layers")
                    .diff_ids([format!("sha256:{}", hex(&content))])
                    .build()?,
            )
            .history([history])
            .build()?;
        let config = blobs.add(MediaType::ImageConfig, json(&configuration)?)?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers([layer])
            .annotations(labels)
            .build()?;
        let mut manifest = blobs.add(MediaType::ImageManifest, json(&manifest)?)?;
        let platform = PlatformBuilder::default()
            .architecture(Arch::Amd64)
            .os(Os::Linux)
            .build()?;
        manifest.set_platform(Some(platform));
        manifest.set_annotations(Some(HashMap::from([
            (
                "org.opencontainers.image.ref.name".into(),
                self.version.into(),
            ),
            // What containerd calls it when it is imported.
            (
                "io.containerd.image.name".into(),
                format!("localhost/{NAME}:{}", self.version),
            ),
        ])));
        let index = ImageIndexBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageIndex)
            .manifests([manifest])
            .build()?;
        let layout = serde_json::json!({"imageLayoutVersion": "1.0.0"});
        let mut files = vec![
            ("oci-layout".to_owned(), json(&layout)?),
            ("index.json".to_owned(), json(&index)?),
        ];
        files.append(&mut blobs.0);
        let mut archive = tar::Builder::new(Vec::new());
        for folder in ["blobs/", "blobs/sha256/"] {
            self.append(&mut archive, folder, tar::EntryType::Directory, 0o755, &[])?;
        }
        for (path, bytes) in files {
            self.append(&mut archive, &path, tar::EntryType::Regular, 0o644, &bytes)?;
        }
        Ok(archive.into_inner()?)
    }

    /// The file system: one file.
    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = tar::Builder::new(Vec::new());
        self.append(
            &mut layer,
            NAME,
            tar::EntryType::Regular,
            0o755,
            self.program,
        )?;
        Ok(layer.into_inner()?)
    }

    fn append(
        &self,
        archive: &mut tar::Builder<Vec<u8>>,
        path: &str,
        kind: tar::EntryType,
        mode: u32,
        bytes: &[u8],
    ) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.time);
        header.set_size(bytes.len() as u64);
        Ok(archive.append_data(&mut header, Path::new(path), bytes)?)
    }
}

/// Files of the layout that are named by what they hold.
#[derive(Default)]
struct Blobs(Vec<(String, Vec<u8>)>);

impl Blobs {
    fn add(&mut self, kind: MediaType, bytes: Vec<u8>) -> Result<Descriptor> {
        let digest = hex(&Sha256::digest(&bytes));
        let descriptor = DescriptorBuilder::default()
            .media_type(kind)
            .size(bytes.len() as u64)
            .digest(digest.parse::<Sha256Digest>()?)
            .build()?;
        self.0.push((format!("blobs/sha256/{digest}"), bytes));
        Ok(descriptor)
    }
}

/// With sorted keys: some are kept in hash maps, which have no order.
fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&serde_json::to_value(value)?)?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 3339.
fn utc(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds)
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_program_gives_the_same_bytes() {
        let image = Image {
            program: b"program",
            version: "1.2.3",
            time: 1_700_000_000,
        };
        let bytes = image.archive().unwrap();
        for _ in 0..8 {
            assert!(bytes == image.archive().unwrap());
        }
        let later = Image {
            time: 1_700_000_001,
            ..image
        };
        assert!(bytes != later.archive().unwrap());
    }

    #[test]
    fn every_blob_is_what_its_name_says() {
        use std::io::Read as _;

        let image = Image {
            program: b"program",
            version: "1.2.3",
            time: 0,
        };
        let bytes = image.archive().unwrap();
        let mut archive = tar::Archive::new(&*bytes);
        let mut blobs = 0;
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            let path = entry.path().unwrap().into_owned();
            let mut held = Vec::new();
            entry.read_to_end(&mut held).unwrap();
            if path.starts_with("blobs/sha256") && !held.is_empty() {
                blobs += 1;
                assert!(path.ends_with(hex(&Sha256::digest(&held))), "{path:?}");
            }
        }
        assert_eq!(blobs, 3);
    }
}
