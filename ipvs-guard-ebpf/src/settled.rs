//! What the compiler must not put together in another way.

use core::arch::asm;

/// A value that the compiler takes as it is, and does not put together in another
/// way where it is used.
#[inline(always)]
pub(crate) fn settled(value: usize) -> usize {
    let mut value = value;
    // SAFETY: the register keeps its value.
    unsafe { asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack)) };
    value
}
