//! Which functions of IPVS the kernel has, and whether IPVS is there at all.
//!
//! A function can be probed if it is listed under its own name. Those that
//! the compiler has changed (`.isra.0`, `.constprop.0`, `.part.0`, `.cold`)
//! take other arguments than the source says, so they are never used.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

const MODULE: &str = "ip_vs";

/// A place in the kernel that a probe wants.
///
/// Seen in x86_64 kernels of Debian; arguments from the BTF of 6.1.176 to 7.3.4,
/// for 5.10 from the code of its module.
///
/// | function | 5.10.223, 5.10.262 | 6.1.176, 6.1.192 | 6.12.107, 6.12.117 | 6.18.15 | 7.2.12, 7.3.4 |
/// |---|---|---|---|---|---|
/// | `tcp_state_transition` | yes | yes | yes | yes | yes |
/// | `ip_vs_conn_expire_now` | yes | yes | yes | yes | yes |
/// | `__ip_vs_update_dest` | yes | yes | yes | yes | yes |
/// | `__ip_vs_del_dest` | yes | yes | yes | yes | yes |
/// | `ip_vs_conn_in_get_proto` | yes | yes | yes | yes | yes |
/// | `ip_vs_in_hook` | no | yes | yes | yes | yes |
/// | `ip_vs_remote_request4` and the like | yes | no | no | no | no |
/// | `__ip_vs_unlink_dest` | no | no | no | no | yes |
/// | `ip_vs_flush` | yes | yes | `.isra.0` | `.isra.0` | `.isra.0` |
/// | `ip_vs_unlink_service` | yes | yes | yes | yes | no |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// A packet is about to be sent by its entry: `(struct ip_vs_conn *, int
    /// direction, struct sk_buff *, …)`.
    Commit,
    /// An entry is made to expire: `(struct ip_vs_conn *)`.
    Expire,
    /// A destination is added or changed: `(struct ip_vs_service *, struct
    /// ip_vs_dest *, struct ip_vs_dest_user_kern *, int add)`. Runs before the
    /// change; reached by every way of adding and editing.
    ConfigUpdate,
    /// A destination is removed: `(struct netns_ipvs *, struct ip_vs_dest *,
    /// bool cleanup)`. Reached once for each destination, whether it, its
    /// service, or every service is removed, or the namespace ends; the
    /// destination still points to its service.
    Delete,
    /// The conntrack of an entry that has ended is dropped: `(struct ip_vs_conn *)`.
    Untrack,
    /// A packet enters IPVS: `(void *, struct sk_buff *, struct nf_hook_state
    /// *)`. Before 5.16 one function for each family and chain.
    In,
    /// The connection table is asked: `(struct netns_ipvs *, int af, struct
    /// sk_buff *, struct ip_vs_iphdr *)`.
    Lookup,
}

impl Hook {
    /// Every hook.
    pub const ALL: &'static [Self] = &[
        Self::Commit,
        Self::Expire,
        Self::ConfigUpdate,
        Self::Delete,
        Self::Untrack,
        Self::In,
        Self::Lookup,
    ];

    /// The functions to probe: the first group whose first member exists, and
    /// of that group all that exist.
    pub const fn candidates(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Commit => &[&["tcp_state_transition"]],
            Self::Expire => &[&["ip_vs_conn_expire_now"]],
            Self::ConfigUpdate => &[&["__ip_vs_update_dest"]],
            Self::Delete => &[&["__ip_vs_del_dest"]],
            Self::Untrack => &[&["ip_vs_conn_drop_conntrack"]],
            Self::In => &[
                &["ip_vs_in_hook"],
                &[
                    "ip_vs_remote_request4",
                    "ip_vs_local_request4",
                    "ip_vs_remote_request6",
                    "ip_vs_local_request6",
                ],
            ],
            Self::Lookup => &[&["ip_vs_conn_in_get_proto"]],
        }
    }

    fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL
            .iter()
            .flat_map(|hook| hook.candidates())
            .flat_map(|group| group.iter().copied())
    }
}

/// How often a name occurs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// In the module `ip_vs`.
    pub module: u32,
    /// In the kernel proper.
    pub kernel: u32,
    /// In other modules.
    pub elsewhere: u32,
    /// With a suffix of the compiler's, in `ip_vs` or the kernel proper.
    pub changed: Option<String>,
}

impl Found {
    /// Whether IPVS has it: as a module, or built in.
    pub const fn is_there(&self) -> bool {
        self.module + self.kernel > 0
    }

    /// Whether a probe by name would not know which one is meant. From 6.6 the
    /// kernel refuses such a probe (`EADDRNOTAVAIL`), before it takes any.
    pub const fn is_ambiguous(&self) -> bool {
        self.module + self.kernel + self.elsewhere > 1
    }
}

/// Why a hook cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SymbolError {
    /// None of its functions is there.
    #[error("/proc/kallsyms has no {tried}{}", changed_note(.changed.as_deref()))]
    Missing {
        /// The functions looked for.
        tried: String,
        /// What the compiler has made of one.
        changed: Option<String>,
    },
    /// A name that several functions have.
    #[error("/proc/kallsyms has {count} functions {name}, so a probe cannot tell which")]
    Ambiguous {
        /// The name.
        name: &'static str,
        /// How many.
        count: u32,
    },
}

fn changed_note(changed: Option<&str>) -> String {
    changed.map_or_else(
        || "; is ip_vs loaded?".to_owned(),
        |name| format!(", only {name}, whose arguments the compiler has changed"),
    )
}

/// The functions of IPVS that the kernel lists.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    found: HashMap<&'static str, Found>,
}

impl Symbols {
    /// Reads the list of the running kernel; names are there even where
    /// addresses are hidden (`kptr_restrict`).
    ///
    /// # Errors
    ///
    /// [`io::Error`] when the list cannot be read.
    pub fn read(host: &Host) -> io::Result<Self> {
        Self::from_reader(BufReader::with_capacity(
            1 << 16,
            File::open(host.proc.join("kallsyms"))?,
        ))
    }

    /// Reads a list of the form of `/proc/kallsyms`; what is no line of it is
    /// passed over.
    ///
    /// # Errors
    ///
    /// [`io::Error`] of the reader.
    pub fn from_reader(mut reader: impl BufRead) -> io::Result<Self> {
        let mut found: HashMap<&'static str, Found> =
            Hook::names().map(|name| (name, Found::default())).collect();
        let mut line = Vec::new();
        loop {
            line.clear();
            // No name has more than KSYM_NAME_LEN (512) bytes.
            if (&mut reader).take(4096).read_until(b'\n', &mut line)? == 0 {
                return Ok(Self { found });
            }
            let Some((name, module)) = function(&line) else {
                continue;
            };
            let (plain, suffix) = match name.split_once('.') {
                Some((plain, _)) => (plain, true),
                None => (name, false),
            };
            let Some(entry) = found.get_mut(plain) else {
                continue;
            };
            match (suffix, module) {
                (true, None | Some(MODULE)) => {
                    entry.changed.get_or_insert_with(|| name.to_owned());
                }
                (true, Some(_)) => {}
                (false, None) => entry.kernel += 1,
                (false, Some(MODULE)) => entry.module += 1,
                (false, Some(_)) => entry.elsewhere += 1,
            }
        }
    }

    /// How often `name`, a candidate of some hook, occurs.
    pub fn count(&self, name: &str) -> Found {
        self.found.get(name).cloned().unwrap_or_default()
    }

    /// The functions to probe for `hook`, at least one.
    ///
    /// # Errors
    ///
    /// [`SymbolError`], naming the functions.
    pub fn resolve(&self, hook: Hook) -> Result<Vec<&'static str>, SymbolError> {
        let there = |name: &&&'static str| self.found.get(**name).is_some_and(Found::is_there);
        let group = hook
            .candidates()
            .iter()
            .find(|group| group.first().iter().any(there));
        let Some(group) = group else {
            let names = || hook.candidates().iter().flat_map(|group| group.iter());
            return Err(SymbolError::Missing {
                tried: names().copied().collect::<Vec<_>>().join(" or "),
                changed: names().find_map(|&name| self.count(name).changed),
            });
        };
        let names: Vec<_> = group.iter().filter(there).copied().collect();
        for &name in &names {
            let found = self.count(name);
            if found.is_ambiguous() {
                return Err(SymbolError::Ambiguous {
                    name,
                    count: found.module + found.kernel + found.elsewhere,
                });
            }
        }
        Ok(names)
    }

    /// Whether IPVS is part of the kernel proper.
    pub fn built_in(&self) -> bool {
        self.count("ip_vs_conn_expire_now").kernel > 0
    }
}

/// Name and module of the function that a line of `/proc/kallsyms` lists.
fn function(line: &[u8]) -> Option<(&str, Option<&str>)> {
    // Most of the 200,000 lines end here.
    if !line.windows(3).any(|w| w == b"_vs" || w == b"tcp") {
        return None;
    }
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (_address, kind, name) = (words.next()?, words.next()?, words.next()?);
    let module = words
        .next()
        .and_then(|word| word.strip_prefix('[')?.strip_suffix(']'));
    matches!(kind, "t" | "T" | "w" | "W").then_some((name, module))
}

/// Where the kernel shows itself.
#[derive(Clone, Debug)]
pub struct Host {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            proc: PathBuf::from("/proc"),
            sys: PathBuf::from("/sys"),
        }
    }
}

/// Whether IPVS is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleState {
    /// Part of the kernel proper: always there.
    BuiltIn,
    /// Loaded and in use. A module that was removed and has come back has
    /// another `generation`, and none of the old probes.
    Live {
        /// Tells one stay of the module from another.
        generation: u64,
    },
    /// Being loaded or removed: wait.
    Changing,
    /// Not loaded.
    Absent,
}

impl fmt::Display for ModuleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BuiltIn => "built in",
            Self::Live { .. } => "loaded",
            Self::Changing => "being loaded or removed",
            Self::Absent => "not loaded",
        })
    }
}

/// Tells the state of IPVS, as often as asked: one small file each time.
#[derive(Clone, Debug)]
pub struct ModuleWatch {
    host: Host,
    built_in: Option<bool>,
}

impl ModuleWatch {
    /// Watches `host`.
    pub const fn new(host: Host) -> Self {
        Self {
            host,
            built_in: None,
        }
    }

    /// The state now.
    ///
    /// # Errors
    ///
    /// [`io::Error`] when neither `/sys/module` nor `/proc/modules` can be
    /// read.
    pub fn state(&mut self) -> io::Result<ModuleState> {
        if self.built_in == Some(true) {
            return Ok(ModuleState::BuiltIn);
        }
        let folder = self.host.sys.join("module").join(MODULE);
        match File::open(folder.join("initstate")) {
            Ok(file) => return from_sysfs(file),
            Err(e) if gone(&e) => {}
            Err(e) => return Err(e),
        }
        // A module's folder has a state, or will have it in a moment; that of
        // a built-in one has its parameters only. The list of symbols decides, once.
        if folder.exists() {
            if self.built_in.is_none() {
                self.built_in = Some(Symbols::read(&self.host)?.built_in());
            }
            return Ok(if self.built_in == Some(true) {
                ModuleState::BuiltIn
            } else {
                ModuleState::Changing
            });
        }
        if self.host.sys.join("module").exists() {
            return Ok(ModuleState::Absent);
        }
        self.ask_proc()
    }

    /// Where no sysfs is mounted.
    fn ask_proc(&self) -> io::Result<ModuleState> {
        for line in BufReader::new(File::open(self.host.proc.join("modules"))?).lines() {
            let line = line?;
            let mut words = line.split_ascii_whitespace();
            if words.next() != Some(MODULE) {
                continue;
            }
            return Ok(match words.nth(3) {
                Some("Live") => ModuleState::Live { generation: 0 },
                _ => ModuleState::Changing,
            });
        }
        Ok(ModuleState::Absent)
    }
}

/// The state of `ip_vs` on the running kernel, asked once.
///
/// # Errors
///
/// As [`ModuleWatch::state`].
pub fn module_state() -> io::Result<ModuleState> {
    ModuleWatch::new(Host::default()).state()
}

fn from_sysfs(mut file: File) -> io::Result<ModuleState> {
    let mut state = String::new();
    let read = file.read_to_string(&mut state);
    let metadata = file.metadata();
    match (read, metadata) {
        (Ok(_), Ok(metadata)) if state.trim_end() == "live" => Ok(ModuleState::Live {
            // The kernel counts inodes of sysfs up, so a module that returns
            // has new ones (fs/kernfs/dir.c, idr_alloc_cyclic).
            generation: metadata.ino(),
        }),
        (Ok(_), Ok(_)) => Ok(ModuleState::Changing),
        (Err(e), _) | (_, Err(e)) if gone(&e) => Ok(ModuleState::Changing),
        (Err(e), _) | (_, Err(e)) => Err(e),
    }
}

/// Whether a file of sysfs has vanished, before or after it was opened.
fn gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(nix::libc::ENODEV)
}
