//! Writes small BTF and ELF files for the tests.

/// A BTF blob in the making.
#[derive(Clone, Default)]
pub(super) struct Encoder {
    types: Vec<u8>,
    strings: Vec<u8>,
    layout: Vec<u8>,
    first_string: u32,
    next: u32,
}

pub(super) const INT: u32 = 1;
pub(super) const PTR: u32 = 2;
pub(super) const ARRAY: u32 = 3;
pub(super) const STRUCT: u32 = 4;
pub(super) const UNION: u32 = 5;
pub(super) const TYPEDEF: u32 = 8;
pub(super) const VOLATILE: u32 = 9;
pub(super) const CONST: u32 = 10;
pub(super) const FLAG: u32 = 1 << 7;

impl Encoder {
    pub(super) fn kernel() -> Self {
        Self {
            strings: vec![0],
            next: 1,
            ..Self::default()
        }
    }

    /// A module over what `kernel` has written so far.
    pub(super) fn module(kernel: &Self) -> Self {
        Self {
            first_string: kernel.first_string + kernel.strings.len() as u32,
            next: kernel.next,
            ..Self::default()
        }
    }

    pub(super) fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.first_string + self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        at
    }

    /// A record of any kind, right or wrong.
    pub(super) fn record(
        &mut self,
        name: &str,
        kind: u32,
        vlen: u32,
        size_or_type: u32,
        tail: &[u32],
    ) -> u32 {
        let name = self.string(name);
        for word in [name, kind << 24 | vlen, size_or_type].iter().chain(tail) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.next += 1;
        self.next - 1
    }

    pub(super) fn int(&mut self, size: u32) -> u32 {
        self.record("int", INT, 0, size, &[size * 8])
    }

    pub(super) fn array(&mut self, of: u32, count: u32) -> u32 {
        self.record("", ARRAY, 0, 0, &[of, of, count])
    }

    /// Members: name, type, bit.
    pub(super) fn composite(
        &mut self,
        kind: u32,
        name: &str,
        size: u32,
        members: &[(&str, u32, u32)],
    ) -> u32 {
        let tail: Vec<u32> = members
            .iter()
            .flat_map(|&(name, ty, bit)| [self.string(name), ty, bit])
            .collect();
        self.record(name, kind, members.len() as u32, size, &tail)
    }

    pub(super) fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.composite(STRUCT, name, size, members)
    }

    /// Says how long records of `kind` are, for a kind that no reader knows.
    pub(super) fn describe(&mut self, kind: u8, info: u8, element: u8) {
        self.layout.resize(usize::from(kind) * 4, 0);
        self.layout.extend_from_slice(&[info, element, 0, 0]);
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let header: u32 = if self.layout.is_empty() { 24 } else { 32 };
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut words = vec![header, 0, types, types, strings];
        if !self.layout.is_empty() {
            words.extend([types + strings, self.layout.len() as u32]);
        }
        let mut out = vec![0x9f, 0xeb, 1, 0];
        out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        out.extend_from_slice(&self.types);
        out.extend_from_slice(&self.strings);
        out.extend_from_slice(&self.layout);
        out
    }
}

/// A 64-bit little-endian ELF file with these sections.
pub(super) fn elf(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut names = vec![0];
    let mut body = vec![0; 64];
    let mut headers = vec![[0u64; 8]];
    for &(name, data) in sections {
        headers.push([
            names.len() as u64 | 1 << 32,
            0,
            0,
            body.len() as u64,
            data.len() as u64,
            0,
            1,
            0,
        ]);
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        body.extend_from_slice(data);
    }
    let table = names.len() as u64 | 3 << 32;
    names.extend_from_slice(b".shstrtab\0");
    let size = names.len() as u64;
    headers.push([table, 0, 0, body.len() as u64, size, 0, 1, 0]);
    body.extend_from_slice(&names);
    body.resize(body.len().next_multiple_of(8), 0);
    let at = body.len() as u64;
    let count = headers.len() as u16;
    for header in headers {
        body.extend(header.iter().flat_map(|word| word.to_le_bytes()));
    }
    body[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    body[16..24].copy_from_slice(&[1, 0, 62, 0, 1, 0, 0, 0]);
    body[40..48].copy_from_slice(&at.to_le_bytes());
    body[52..54].copy_from_slice(&64u16.to_le_bytes());
    body[58..60].copy_from_slice(&64u16.to_le_bytes());
    body[60..62].copy_from_slice(&count.to_le_bytes());
    body[62..64].copy_from_slice(&(count - 1).to_le_bytes());
    body
}
