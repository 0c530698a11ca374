//! BTF: where a member of a kernel structure is.
//!
//! The format is `Documentation/bpf/btf.rst` of the kernel, with the wider
//! `info` word and the layout section that `include/uapi/linux/btf.h` gained
//! in 2026. A module's BTF is *split*: its type ids and string offsets go on
//! from those of the kernel it was built for.
//!
//! This is a reader of our own because none of the published ones fits. aya-obj
//! and the like know no split BTF. btf-rs 2 does, but it is LGPL, which a static
//! binary under MIT or Apache cannot take in without further duties; it copies
//! every type and every string (47 MB for the BTF of a 6.18, against 8 MB here);
//! and it rejects the kinds that it does not know, where the layout section says
//! how to skip them.
//!
//! Any bytes are safe to give. Whatever a record says about the size of things
//! is checked against what is there before anything depends on it, memory is
//! proportional to the input, and the walk through nested types has a budget.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    path::Path,
    sync::Arc,
};

use ipvs_guard_common::layout::Field;
use object::{
    Endianness, Object, ObjectSection, ReadCache, ReadRef,
    read::{CompressionFormat, elf::ElfFile64},
};

/// Bytes of BTF that are read at most; the largest kernels have a tenth of it.
const MAX_BTF: u64 = 64 << 20;
/// Bytes of an ELF file that is looked into at most; a kernel with debug
/// information has half of it.
const MAX_ELF: u64 = 2 << 30;
/// Structures of one name. Deduplication can fail, so a module's BTF may hold
/// a handful (6.18 holds three of `netns_ipvs`).
const MAX_SAME_NAME: usize = 64;
/// Typedefs and qualifiers in a row, arrays of arrays, anonymous members
/// within each other: the kernel's verifier allows 32 (`MAX_RESOLVE_DEPTH`).
const MAX_DEPTH: usize = 32;
/// Members looked at for one path; `sk_buff` has about a hundred.
const MAX_MEMBERS: u32 = 1 << 17;
const POINTER: u64 = 8;

const HEADER: usize = 24;
const HEADER_WITH_LAYOUT: usize = 32;
const RECORD: usize = 12;

mod kind {
    pub(super) const INT: u8 = 1;
    pub(super) const PTR: u8 = 2;
    pub(super) const ARRAY: u8 = 3;
    pub(super) const STRUCT: u8 = 4;
    pub(super) const UNION: u8 = 5;
    pub(super) const ENUM: u8 = 6;
    pub(super) const TYPEDEF: u8 = 8;
    pub(super) const VOLATILE: u8 = 9;
    pub(super) const CONST: u8 = 10;
    pub(super) const RESTRICT: u8 = 11;
    pub(super) const FLOAT: u8 = 16;
    pub(super) const TYPE_TAG: u8 = 18;
    pub(super) const ENUM64: u8 = 19;
}

/// Why bytes are no BTF.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file could not be opened or read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// More than any kernel has.
    #[error("is larger than {max} bytes; is it the right file?")]
    TooLarge {
        /// Bytes that are read at most.
        max: u64,
    },
    /// Neither BTF nor an ELF file.
    #[error("is neither BTF nor an ELF file")]
    NotBtf,
    /// A compressed module or kernel.
    #[error("is compressed with {with}; decompress it first")]
    Compressed {
        /// The program that made it.
        with: &'static str,
    },
    /// Not an ELF file that can be read.
    #[error("is not a readable 64-bit ELF file: {0}")]
    Elf(#[from] object::Error),
    /// An ELF file without BTF.
    #[error(
        "has no .BTF section; give a kernel or module built with CONFIG_DEBUG_INFO_BTF, or pahole's output"
    )]
    NoSection,
    /// Of a machine with the other byte order.
    #[error("is BTF of a machine with the other byte order")]
    ByteOrder,
    /// Of a version that is not known.
    #[error("is BTF of version {0}, only 1 is known")]
    Version(u8),
    /// It ends before its header says.
    #[error("is cut short: {what} ends at byte {end} of {len}")]
    Truncated {
        /// The part that is missing.
        what: &'static str,
        /// Where it should end.
        end: u64,
        /// Bytes there are.
        len: usize,
    },
    /// A record makes no sense.
    #[error("is damaged: type {id} {problem}")]
    Type {
        /// Which type.
        id: u32,
        /// What is wrong.
        problem: &'static str,
    },
    /// The strings make no sense.
    #[error("is damaged: its strings {0}")]
    Strings(&'static str),
    /// A module's BTF, read over a kernel's that it was not built for.
    #[error("is the BTF of a module of another kernel, or damaged")]
    OtherKernel,
    /// A module's BTF, read by itself.
    #[error("is the BTF of a module, and the BTF of the kernel it was built for is not at hand")]
    NeedsBase,
}

/// Why a member has no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("struct {structure}, member {path}: {problem}")]
pub struct FieldError {
    /// The structure asked for.
    pub structure: String,
    /// The member asked for.
    pub path: String,
    /// What is wrong.
    pub problem: FieldProblem,
}

/// What is wrong with a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldProblem {
    /// There is no such structure.
    #[error("no such structure")]
    NoStructure,
    /// The structure has no such member.
    #[error("no such member")]
    NoMember,
    /// Not a whole number of bytes, or not on a byte's boundary.
    #[error("a bitfield, which cannot be read")]
    Bitfield,
    /// Not a width that can be read at once.
    #[error("{0} bytes wide, where 1, 2, 4, 8 or 16 can be read")]
    Width(u64),
    /// It has no size.
    #[error("its type has no size")]
    NoSize,
    /// It ends behind its structure, or too far from its start.
    #[error("outside its structure")]
    Outside,
    /// Structures of one name differ.
    #[error("defined more than once, in different ways")]
    Ambiguous,
    /// It nests too deeply, or refers to itself.
    #[error("its type nests too deeply")]
    TooDeep,
}

/// The types of one kernel, or of one module over its kernel.
#[derive(Debug)]
pub struct Btf {
    data: Vec<u8>,
    strings: Range<usize>,
    first_string: u32,
    /// Where each record starts.
    types: Vec<u32>,
    first_type: u32,
    base: Option<Arc<Btf>>,
}

struct Type<'b> {
    name: u32,
    kind: u8,
    vlen: u32,
    flag: bool,
    size_or_type: u32,
    tail: &'b [u8],
}

struct Member {
    name: u32,
    type_id: u32,
    bit: u64,
    bitfield: bool,
}

impl Btf {
    /// Reads `data`, the BTF of a kernel, or of a module when `base` is its
    /// kernel's.
    ///
    /// # Errors
    ///
    /// [`BtfError`], when the bytes are not what the format asks for, or do
    /// not belong to `base`.
    pub fn parse(data: Vec<u8>, base: Option<Arc<Self>>) -> Result<Self, BtfError> {
        if data.len() as u64 > MAX_BTF {
            return Err(BtfError::TooLarge { max: MAX_BTF });
        }
        let header = Header::parse(&data)?;
        let (first_type, first_string) = match &base {
            None => (1, 0),
            Some(base) => (base.end_type(), base.end_string()),
        };
        let strings = &data[header.strings.clone()];
        if strings.last().is_some_and(|&last| last != 0) {
            return Err(BtfError::Strings("do not end with a zero byte"));
        }
        match (&base, strings.first()) {
            (None, Some(0)) | (Some(_), _) => {}
            (None, _) => return Err(BtfError::NeedsBase),
        }
        let types = header.records(&data, first_type)?;
        let btf = Self {
            strings: header.strings,
            first_string,
            types,
            first_type,
            base,
            data,
        };
        match btf.check_references() {
            Ok(()) => Ok(btf),
            // What points into a kernel that is not the right one hardly ever
            // hits the start of a name.
            Err(_) if btf.base.is_some() => Err(BtfError::OtherKernel),
            Err(e) => Err(e),
        }
    }

    /// Reads a file: BTF, or an ELF file with a `.BTF` section. What belongs
    /// to a module is read over `kernel`, which is asked for only then.
    ///
    /// # Errors
    ///
    /// [`BtfError`]; [`BtfError::NeedsBase`] when `kernel` has none.
    pub fn read(path: &Path, kernel: impl FnOnce() -> Option<Arc<Self>>) -> Result<Self, BtfError> {
        let mut file = File::open(path)?;
        let mut start = [0; 4];
        let got = read_up_to(&mut file, &mut start)?;
        if start == object::elf::ELFMAG {
            if file.metadata()?.len() > MAX_ELF {
                return Err(BtfError::TooLarge { max: MAX_ELF });
            }
            return Self::parse_elf(&ReadCache::new(file), kernel);
        }
        let mut data = Vec::with_capacity(file.metadata()?.len().min(MAX_BTF) as usize + 1);
        data.extend_from_slice(&start[..got]);
        file.take(MAX_BTF).read_to_end(&mut data)?;
        Self::parse_raw(data, kernel)
    }

    /// Like [`Self::read`], from memory.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn from_bytes(
        data: &[u8],
        kernel: impl FnOnce() -> Option<Arc<Self>>,
    ) -> Result<Self, BtfError> {
        if data.starts_with(&object::elf::ELFMAG) {
            return Self::parse_elf(data, kernel);
        }
        Self::parse_raw(data.to_vec(), kernel)
    }

    fn parse_elf<'data>(
        data: impl ReadRef<'data>,
        kernel: impl FnOnce() -> Option<Arc<Self>>,
    ) -> Result<Self, BtfError> {
        let elf = ElfFile64::<Endianness, _>::parse(data)?;
        let section = |name| -> Result<Option<Vec<u8>>, BtfError> {
            let Some(section) = elf.section_by_name(name) else {
                return Ok(None);
            };
            if section.size() > MAX_BTF {
                return Err(BtfError::TooLarge { max: MAX_BTF });
            }
            if section.compressed_file_range()?.format != CompressionFormat::None {
                return Err(BtfError::Compressed { with: "objcopy" });
            }
            Ok(Some(section.data()?.to_vec()))
        };
        let btf = section(".BTF")?.ok_or(BtfError::NoSection)?;
        // A module built apart from its kernel (from 6.11) brings the little
        // of it that it needs along: its ids count from there.
        if let Some(base) = section(".BTF.base")? {
            return Self::parse(btf, Some(Arc::new(Self::parse(base, None)?)));
        }
        Self::parse_raw(btf, kernel)
    }

    fn parse_raw(
        data: Vec<u8>,
        kernel: impl FnOnce() -> Option<Arc<Self>>,
    ) -> Result<Self, BtfError> {
        // A kernel's strings begin with the empty one; a module's go on from
        // there, so they never repeat it.
        let header = Header::parse(&data)?;
        if data[header.strings].first() == Some(&0) {
            return Self::parse(data, None);
        }
        let base = kernel().ok_or(BtfError::NeedsBase)?;
        Self::parse(data, Some(base))
    }

    /// Whether there is a structure `name`, here or in the kernel below.
    pub fn has(&self, name: &str) -> bool {
        !self.named(name).is_empty()
            || self
                .base
                .as_ref()
                .is_some_and(|base| !base.named(name).is_empty())
    }

    /// Offset and width of the member `path` of `structure`; dots go into
    /// nested structures, anonymous ones are looked through.
    ///
    /// # Errors
    ///
    /// [`FieldError`], naming the member.
    pub fn field(&self, structure: &str, path: &str) -> Result<Field, FieldError> {
        self.structure(structure).field(path)
    }

    /// The structure `name`, to ask for several members.
    pub fn structure<'b>(&'b self, name: &'b str) -> Structure<'b> {
        let mut ids = self.named(name);
        if ids.is_empty()
            && let Some(base) = &self.base
        {
            ids = base.named(name);
        }
        Structure {
            btf: self,
            name,
            ids,
        }
    }

    fn named(&self, name: &str) -> Vec<u32> {
        (self.first_type..self.end_type())
            .filter(|&id| {
                self.own(id).is_some_and(|ty| {
                    matches!(ty.kind, kind::STRUCT | kind::UNION)
                        && self.is_string(ty.name, name.as_bytes())
                })
            })
            .take(MAX_SAME_NAME + 1)
            .collect()
    }

    fn check_references(&self) -> Result<(), BtfError> {
        let (types, strings) = (self.end_type(), self.end_string());
        for (id, _) in (self.first_type..).zip(&self.types) {
            let damaged = |problem| BtfError::Type { id, problem };
            let ty = self.own(id).ok_or(damaged("ends early"))?;
            let name = |name| {
                if name >= strings {
                    return Err(damaged("has a name outside the strings"));
                }
                if !self.starts_string(name) {
                    return Err(damaged("has a name from the middle of a string"));
                }
                Ok(())
            };
            let refers = |to| {
                if to < types {
                    Ok(())
                } else {
                    Err(damaged("refers to a type that is not there"))
                }
            };
            name(ty.name)?;
            match ty.kind {
                kind::STRUCT | kind::UNION => {
                    for member in ty.members() {
                        name(member.name)?;
                        refers(member.type_id)?;
                    }
                }
                kind::ARRAY => refers(ty.word(0))?,
                kind::PTR
                | kind::TYPEDEF
                | kind::VOLATILE
                | kind::CONST
                | kind::RESTRICT
                | kind::TYPE_TAG => refers(ty.size_or_type)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn end_type(&self) -> u32 {
        // A record has 12 bytes and the input has an end, so this fits.
        self.first_type + self.types.len() as u32
    }

    fn end_string(&self) -> u32 {
        self.first_string + self.strings.len() as u32
    }

    fn own(&self, id: u32) -> Option<Type<'_>> {
        let at = *self.types.get(id.checked_sub(self.first_type)? as usize)? as usize;
        let record = self.data.get(at..)?;
        let info = word(record, 4)?;
        Some(Type {
            name: word(record, 0)?,
            kind: (info >> 24 & 0x7f) as u8,
            vlen: info & 0x00ff_ffff,
            flag: info >> 31 != 0,
            size_or_type: word(record, 8)?,
            tail: record.get(RECORD..)?,
        })
    }

    fn get(&self, id: u32) -> Option<Type<'_>> {
        match &self.base {
            Some(base) if id < self.first_type => base.get(id),
            _ => self.own(id),
        }
    }

    /// The bytes from string `offset` on.
    fn string(&self, offset: u32) -> Option<&[u8]> {
        if let Some(base) = &self.base
            && offset < self.first_string
        {
            return base.string(offset);
        }
        let strings = &self.data[self.strings.clone()];
        strings.get(offset.checked_sub(self.first_string)? as usize..)
    }

    fn is_string(&self, offset: u32, name: &[u8]) -> bool {
        self.string(offset)
            .and_then(|from| from.strip_prefix(name))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    fn starts_string(&self, offset: u32) -> bool {
        offset == 0
            || offset == self.first_string
            || self
                .string(offset - 1)
                .is_some_and(|before| before.first() == Some(&0))
    }

    /// `id` without the names and qualifiers in front of the type.
    fn strip(&self, mut id: u32) -> Result<u32, FieldProblem> {
        for _ in 0..MAX_DEPTH {
            match self.get(id) {
                Some(ty) if ty.is_modifier() => id = ty.size_or_type,
                _ => return Ok(id),
            }
        }
        Err(FieldProblem::TooDeep)
    }

    /// Bytes that a value of type `id` takes.
    fn size(&self, mut id: u32) -> Result<u64, FieldProblem> {
        let mut count = 1u64;
        for _ in 0..MAX_DEPTH {
            id = self.strip(id)?;
            let ty = self.get(id).ok_or(FieldProblem::NoSize)?;
            let each = match ty.kind {
                kind::PTR => POINTER,
                kind::INT => {
                    let (bits, shift) = (ty.word(0) & 0xff, ty.word(0) >> 16 & 0xff);
                    // Before `kind_flag`, a bitfield was an integer of its own.
                    if shift != 0 || bits != ty.size_or_type.saturating_mul(8) {
                        return Err(FieldProblem::Bitfield);
                    }
                    ty.size_or_type.into()
                }
                kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FLOAT => {
                    ty.size_or_type.into()
                }
                kind::ARRAY => {
                    count = count
                        .checked_mul(ty.word(2).into())
                        .ok_or(FieldProblem::Outside)?;
                    id = ty.word(0);
                    continue;
                }
                _ => return Err(FieldProblem::NoSize),
            };
            return count.checked_mul(each).ok_or(FieldProblem::Outside);
        }
        Err(FieldProblem::TooDeep)
    }

    /// The member `name` of structure `id`, its place in bits from the start
    /// of `id`.
    fn member(&self, id: u32, name: &[u8], budget: &mut u32) -> Result<Member, FieldProblem> {
        let mut open = vec![(id, 0u64, 0usize)];
        while let Some((id, from, depth)) = open.pop() {
            let Some(ty) = self.get(id) else { continue };
            if !matches!(ty.kind, kind::STRUCT | kind::UNION) {
                continue;
            }
            for mut member in ty.members() {
                *budget = budget.checked_sub(1).ok_or(FieldProblem::TooDeep)?;
                member.bit = member.bit.saturating_add(from);
                if self.is_string(member.name, name) {
                    return Ok(member);
                }
                if self.is_string(member.name, b"") {
                    if depth == MAX_DEPTH {
                        return Err(FieldProblem::TooDeep);
                    }
                    open.push((self.strip(member.type_id)?, member.bit, depth + 1));
                }
            }
        }
        Err(FieldProblem::NoMember)
    }

    fn place(&self, structure: u32, path: &str) -> Result<Field, FieldProblem> {
        let mut budget = MAX_MEMBERS;
        let (mut id, mut bit, mut bitfield) = (structure, 0u64, false);
        for name in path.split('.') {
            if name.is_empty() {
                return Err(FieldProblem::NoMember);
            }
            let member = self.member(id, name.as_bytes(), &mut budget)?;
            id = self.strip(member.type_id)?;
            bit = bit.saturating_add(member.bit);
            bitfield |= member.bitfield;
        }
        if bitfield || bit % 8 != 0 {
            return Err(FieldProblem::Bitfield);
        }
        let (offset, width) = (bit / 8, self.size(id)?);
        if !matches!(width, 1 | 2 | 4 | 8 | 16) {
            return Err(FieldProblem::Width(width));
        }
        if offset.saturating_add(width) > self.size(structure)? {
            return Err(FieldProblem::Outside);
        }
        Ok(Field {
            offset: u16::try_from(offset).map_err(|_| FieldProblem::Outside)?,
            width: width as u16,
        })
    }
}

/// A structure of one name.
#[derive(Debug)]
pub struct Structure<'b> {
    btf: &'b Btf,
    name: &'b str,
    ids: Vec<u32>,
}

impl Structure<'_> {
    /// Offset and width of the member `path`.
    ///
    /// # Errors
    ///
    /// [`FieldError`], naming the member.
    pub fn field(&self, path: &str) -> Result<Field, FieldError> {
        self.place(path).map_err(|problem| FieldError {
            structure: self.name.to_owned(),
            path: path.to_owned(),
            problem,
        })
    }

    fn place(&self, path: &str) -> Result<Field, FieldProblem> {
        if self.ids.len() > MAX_SAME_NAME {
            return Err(FieldProblem::Ambiguous);
        }
        let mut places = self.ids.iter().map(|&id| self.btf.place(id, path));
        let first = places.next().ok_or(FieldProblem::NoStructure)??;
        for place in places {
            if place? != first {
                return Err(FieldProblem::Ambiguous);
            }
        }
        Ok(first)
    }
}

impl Type<'_> {
    fn is_modifier(&self) -> bool {
        matches!(
            self.kind,
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG
        )
    }

    /// The `n`th word behind the record, which [`Header::records`] has seen
    /// to be there.
    fn word(&self, n: usize) -> u32 {
        word(self.tail, n * 4).unwrap_or(0)
    }

    fn members(&self) -> impl Iterator<Item = Member> {
        (0..self.vlen as usize).map(|n| {
            let place = self.word(n * 3 + 2);
            // With `kind_flag`, the upper byte has the bits of a bitfield.
            let (bit, bits) = if self.flag {
                (place & 0x00ff_ffff, place >> 24)
            } else {
                (place, 0)
            };
            Member {
                name: self.word(n * 3),
                type_id: self.word(n * 3 + 1),
                bit: bit.into(),
                bitfield: bits != 0,
            }
        })
    }
}

struct Header {
    types: Range<usize>,
    strings: Range<usize>,
    layout: Range<usize>,
}

impl Header {
    fn parse(data: &[u8]) -> Result<Self, BtfError> {
        match data {
            [0x9f, 0xeb, 1, ..] => {}
            [0x9f, 0xeb, version, ..] => return Err(BtfError::Version(*version)),
            [0xeb, 0x9f, ..] => return Err(BtfError::ByteOrder),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => return Err(BtfError::Compressed { with: "zstd" }),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => return Err(BtfError::Compressed { with: "xz" }),
            [0x1f, 0x8b, ..] => return Err(BtfError::Compressed { with: "gzip" }),
            _ => return Err(BtfError::NotBtf),
        }
        let cut = |what, end| BtfError::Truncated {
            what,
            end,
            len: data.len(),
        };
        let get = |at| word(data, at).ok_or(cut("the header", HEADER as u64));
        let len = get(4)? as usize;
        if len < HEADER || len > data.len() {
            return Err(cut("the header", len.max(HEADER) as u64));
        }
        let part = |what, at| {
            let (from, size) = (u64::from(get(at)?), u64::from(get(at + 4)?));
            let from = len as u64 + from;
            let end = from + size;
            if end > data.len() as u64 {
                return Err(cut(what, end));
            }
            Ok(from as usize..end as usize)
        };
        Ok(Self {
            types: part("the type section", 8)?,
            strings: part("the string section", 16)?,
            layout: if len >= HEADER_WITH_LAYOUT {
                part("the layout section", 24)?
            } else {
                0..0
            },
        })
    }

    /// Where each record starts, and that each is there to its end.
    fn records(&self, data: &[u8], first: u32) -> Result<Vec<u32>, BtfError> {
        let mut at = self.types.start;
        let mut records = Vec::new();
        while at < self.types.end {
            // The input has at most MAX_BTF bytes, so ids and offsets fit.
            let id = first.saturating_add(records.len() as u32);
            let damaged = |problem| BtfError::Type { id, problem };
            let info = word(&data[..self.types.end], at + 4).ok_or(damaged("is cut short"))?;
            let (info_size, element_size) = self
                .sizes(data, (info >> 24 & 0x7f) as u8)
                .ok_or(damaged("is of a kind that is not known"))?;
            let size = RECORD + info_size + (info & 0x00ff_ffff) as usize * element_size;
            if size > self.types.end - at {
                return Err(damaged("is cut short"));
            }
            records.push(at as u32);
            at += size;
        }
        Ok(records)
    }

    /// Bytes behind a record of `kind`: once, and for each of its elements.
    fn sizes(&self, data: &[u8], kind: u8) -> Option<(usize, usize)> {
        Some(match kind {
            2 | 7..=12 | 16 | 18 => (0, 0),
            1 | 14 | 17 => (4, 0),
            3 => (12, 0),
            4 | 5 | 15 | 19 => (0, 12),
            6 | 13 => (0, 8),
            0 => return None,
            newer => {
                let entry = data[self.layout.clone()].get(usize::from(newer) * 4..)?;
                (usize::from(*entry.first()?), usize::from(*entry.get(1)?))
            }
        })
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

fn read_up_to(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < into.len() {
        match from.read(&mut into[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}
