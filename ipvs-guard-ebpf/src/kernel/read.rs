//! Kernel memory: the only place that reads it.

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};
use ipvs_guard_common::{
    addr::{Addr, Endpoint},
    layout::FieldId,
};

use crate::{maps, settled::settled};

/// The kernel refused a read, a pointer was null, or a value makes no sense: of
/// this field.
#[derive(Clone, Copy)]
pub(crate) struct Fault(pub(crate) FieldId);

/// Integers, and arrays of them: any bytes are a value.
pub(crate) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl<T: Plain, const N: usize> Plain for [T; N] {}

/// What is at `address`, which `id` led to. Whole words where possible: BPF
/// takes byte arrays apart byte by byte.
#[inline(always)]
pub(crate) fn value<T: Plain>(address: u64, id: FieldId) -> Result<T, Fault> {
    // SAFETY: the helper checks the address and fails on what is not mapped;
    // any bytes are a value of the type.
    unsafe { bpf_probe_read_kernel(address as *const T) }.map_err(|_| Fault(id))
}

/// Copies `len` bytes at `address` to the start of `out`, whose length is a power of
/// two; none are copied, and it is `None`, when they do not fit or cannot be read.
#[inline(always)]
pub(crate) fn bytes<const N: usize>(address: u64, len: u64, out: &mut [u8; N]) -> Option<u32> {
    if len == 0 || len >= N as u64 {
        return None;
    }
    // The verifier knows a bound that it sees on this very register.
    let len = settled(len as usize) as u32 & (N as u32 - 1);
    // SAFETY: the helper checks the address; `out` is longer than `len`.
    let result = unsafe {
        generated::bpf_probe_read_kernel(out.as_mut_ptr().cast(), len, address as *const _)
    };
    (result == 0).then_some(len)
}

/// Address of field `id` in the structure at `base`.
#[inline(always)]
pub(crate) fn address(base: u64, id: FieldId) -> u64 {
    base + u64::from(maps::field(id).offset)
}

/// An unsigned field of 1, 2 or 4 bytes.
#[inline(always)]
pub(crate) fn uint(base: u64, id: FieldId) -> Result<u32, Fault> {
    let at = address(base, id);
    match maps::field(id).width {
        1 => value::<u8>(at, id).map(u32::from),
        2 => value::<u16>(at, id).map(u32::from),
        _ => value(at, id),
    }
}

/// Address (`union nf_inet_addr` of the family in `af`) and port, put in place.
#[inline(always)]
pub(crate) fn endpoint(
    base: u64,
    af: FieldId,
    addr: FieldId,
    port: FieldId,
    out: &mut Endpoint,
) -> Result<(), Fault> {
    let af_value = uint(base, af)?;
    let raw: [u64; 2] = value(address(base, addr), addr)?;
    let port_be: u16 = value(address(base, port), port)?;
    let ip = Addr::from_kernel(raw, af_value).ok_or(Fault(af))?;
    *out = Endpoint::new(ip, port_be.to_ne_bytes());
    Ok(())
}

/// A pointer field, which must not be null.
#[inline(always)]
pub(crate) fn pointer(base: u64, id: FieldId) -> Result<u64, Fault> {
    match value(address(base, id), id)? {
        0 => Err(Fault(id)),
        pointer => Ok(pointer),
    }
}
