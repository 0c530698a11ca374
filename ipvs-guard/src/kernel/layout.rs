//! Where the fields are that the probes read, on the kernel that runs.
//!
//! Sources, the first that serves: the file that the user gave; the module's
//! BTF over the kernel's; the kernel's alone, which has the structures when
//! IPVS is built in; the built-in table for the structures of `ip_vs`, with
//! those of `net` and `sk_buff` from the kernel's BTF.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipvs_guard_common::layout::{FieldId, KernelLayout};

use super::{
    btf::{Btf, BtfError, FieldError, FieldProblem},
    table,
};

/// The bit of [`FieldId::DestFlags`] that says whether a destination is in its
/// service: `IP_VS_DEST_F_AVAILABLE` of `flags`, and `IP_VS_DEST_CF_AVAILABLE`
/// of `cflags`, have the same value (5.10.223 to 7.3.4).
pub const DEST_AVAILABLE: u32 = 1;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Source {
    /// The user's BTF or ELF file.
    pub file: Option<PathBuf>,
    /// Where the kernel offers its BTF: `/sys/kernel/btf`.
    pub system: PathBuf,
    /// The kernel's release, as in `uname -r`.
    pub release: String,
}

impl Source {
    /// The running kernel, and `file` before it.
    ///
    /// # Errors
    ///
    /// [`io::Error`] of `uname`.
    pub fn running(file: Option<PathBuf>) -> io::Result<Self> {
        Ok(Self {
            file,
            system: PathBuf::from("/sys/kernel/btf"),
            release: nix::sys::utsname::uname()?
                .release()
                .to_string_lossy()
                .into_owned(),
        })
    }
}

/// A layout, and what it rests on.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Offset and width of every field.
    pub layout: KernelLayout,
    /// Where they come from.
    pub origin: Origin,
    /// What else the kernel might have, to be tried when the proof refuses
    /// `layout`. Empty unless the table was used.
    pub alternatives: Vec<Alternative>,
}

/// A layout that the kernel might have as well.
#[derive(Clone, Debug)]
pub struct Alternative {
    /// Offset and width of every field.
    pub layout: KernelLayout,
    /// Where they come from.
    pub origin: Origin,
}

/// Where a layout comes from, to be shown to the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The structures of `ip_vs`.
    pub ip_vs: Part,
    /// `net` and `sk_buff`.
    pub kernel: Part,
}

/// Where a part of a layout comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// BTF in this file.
    File(PathBuf),
    /// The built-in table, the row of these kernels.
    Table(&'static str),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Table(seen_in) => write!(f, "the built-in table ({seen_in})"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ip_vs == self.kernel {
            write!(f, "layout from {}", self.ip_vs)
        } else {
            write!(
                f,
                "layout of ip_vs from {}, of the kernel from {}",
                self.ip_vs, self.kernel
            )
        }
    }
}

/// Why there is no layout.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The file that the user gave cannot serve: a usage error.
    #[error("--btf {}: {reason}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: FileProblem,
    },
    /// The kernel does not tell: a missing feature.
    #[error("kernel {release}: {reason}; give its BTF with --btf FILE")]
    Missing {
        /// The kernel's release.
        release: String,
        /// What is missing.
        reason: String,
    },
}

/// What is wrong with the user's file.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// It is not BTF.
    #[error(transparent)]
    Unreadable(#[from] BtfError),
    /// It is, but of something else.
    #[error(
        "has no struct ip_vs_conn; give the BTF of ip_vs.ko, or of a kernel with IPVS built in"
    )]
    NoIpvs,
    /// A field has no place in it.
    #[error("{0}; is it of this kernel?")]
    Field(#[from] FieldError),
}

/// Finds the layout of the kernel that `source` names. Without a file, ask once
/// IPVS is live: before, the kernel has no BTF of it, and the table is used
/// where the kernel itself would have told.
///
/// A layout is not to be trusted before it was proved on a live connection.
///
/// # Errors
///
/// [`LayoutError::BadFile`] when the user's file cannot serve, whatever the
/// kernel offers; [`LayoutError::Missing`] when there is no such file and the
/// kernel does not tell.
pub fn resolve(source: &Source) -> Result<Resolved, LayoutError> {
    let system = System::new(&source.system);
    match &source.file {
        Some(path) => from_file(path, &system).map_err(|reason| LayoutError::BadFile {
            path: path.clone(),
            reason,
        }),
        None => from_system(&system, &source.release).map_err(|reason| LayoutError::Missing {
            release: source.release.clone(),
            reason,
        }),
    }
}

/// BTF with its name.
struct Named {
    btf: Arc<Btf>,
    path: PathBuf,
}

struct System {
    module: PathBuf,
    kernel: PathBuf,
}

impl System {
    fn new(root: &Path) -> Self {
        Self {
            module: root.join("ip_vs"),
            kernel: root.join("vmlinux"),
        }
    }

    fn kernel(&self) -> Result<Named, BtfError> {
        let btf = Btf::read(&self.kernel, || None)?;
        Ok(Named {
            btf: Arc::new(btf),
            path: self.kernel.clone(),
        })
    }
}

fn from_file(path: &Path, system: &System) -> Result<Resolved, FileProblem> {
    let btf = Btf::read(path, || system.kernel().ok().map(|kernel| kernel.btf))?;
    if !btf.has(CONNECTION) {
        return Err(FileProblem::NoIpvs);
    }
    let ip_vs = Named {
        btf: Arc::new(btf),
        path: path.to_owned(),
    };
    // The little that a module brings along, or a cut-down file, need not
    // have what belongs to the kernel.
    if ip_vs.btf.has(PACKET) {
        return Ok(from_btf(&ip_vs, &ip_vs)?);
    }
    match system.kernel() {
        Ok(kernel) => Ok(from_btf(&ip_vs, &kernel)?),
        Err(_) => Ok(from_btf(&ip_vs, &ip_vs)?),
    }
}

fn from_system(system: &System, release: &str) -> Result<Resolved, String> {
    let unreadable = |path: &Path, e: BtfError| format!("{}: {e}", path.display());
    let kernel = system.kernel().map_err(|e| unreadable(&system.kernel, e))?;
    let module = match Btf::read(&system.module, || Some(kernel.btf.clone())) {
        Ok(btf) => Some(Named {
            btf: Arc::new(btf),
            path: system.module.clone(),
        }),
        Err(BtfError::Io(e)) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(unreadable(&system.module, e)),
    };
    let describes_ipvs = module.as_ref().unwrap_or(&kernel);
    if describes_ipvs.btf.has(CONNECTION) {
        return from_btf(describes_ipvs, &kernel).map_err(|e| e.to_string());
    }
    from_table(&kernel, release)
}

/// A structure that whoever describes `ip_vs` has.
const CONNECTION: &str = "ip_vs_conn";
/// A structure that whoever describes the kernel has.
const PACKET: &str = "sk_buff";

fn from_btf(ip_vs: &Named, kernel: &Named) -> Result<Resolved, FieldError> {
    let mut layout = KernelLayout::unresolved();
    fill(&mut layout, &ip_vs.btf, Owner::IpVs)?;
    fill(&mut layout, &kernel.btf, Owner::Kernel)?;
    Ok(Resolved {
        layout,
        origin: Origin {
            ip_vs: Part::File(ip_vs.path.clone()),
            kernel: Part::File(kernel.path.clone()),
        },
        alternatives: Vec::new(),
    })
}

fn from_table(kernel: &Named, release: &str) -> Result<Resolved, String> {
    let mut layout = KernelLayout::unresolved();
    fill(&mut layout, &kernel.btf, Owner::Kernel).map_err(|e| e.to_string())?;
    let mut rows = table::candidates(release).iter().map(|row| {
        let mut layout = layout;
        row.fill(&mut layout);
        Alternative {
            layout,
            origin: Origin {
                ip_vs: Part::Table(row.seen_in),
                kernel: Part::File(kernel.path.clone()),
            },
        }
    });
    let Alternative { layout, origin } = rows.next().ok_or(
        "it does not describe its module ip_vs (is ip_vs loaded?), and is not in the built-in table",
    )?;
    Ok(Resolved {
        layout,
        origin,
        alternatives: rows.collect(),
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    IpVs,
    Kernel,
}

impl Owner {
    fn of(id: FieldId) -> Self {
        match id.structure() {
            "net" | PACKET => Self::Kernel,
            _ => Self::IpVs,
        }
    }
}

fn fill(layout: &mut KernelLayout, btf: &Btf, owner: Owner) -> Result<(), FieldError> {
    let mine = || FieldId::ALL.iter().filter(|&&id| Owner::of(id) == owner);
    let mut names: Vec<_> = mine().map(|id| id.structure()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let structure = btf.structure(name);
        for &id in mine().filter(|id| id.structure() == name) {
            let field = match newer_path(id).map(|path| structure.field(path)) {
                None
                | Some(Err(FieldError {
                    problem: FieldProblem::NoMember,
                    ..
                })) => structure.field(id.path()),
                Some(found) => found,
            }?;
            layout.set(id, field);
        }
    }
    Ok(())
}

/// Where a field has gone in kernels that still have a member of the old name.
fn newer_path(id: FieldId) -> Option<&'static str> {
    // Both members exist since the available bit has moved, in 7.x and in the
    // stable releases that took the change over (seen in 6.1.192, 6.12.107).
    (id == FieldId::DestFlags).then_some("cflags")
}
