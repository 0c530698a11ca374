//! `BPF_PROG_TEST_RUN`: a program run on bytes of our own.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    time::Duration,
};

use nix::{errno::Errno, libc};

/// What a program made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Its return value (`TC_ACT_*`, `XDP_*`).
    pub action: i32,
    /// The packet.
    pub bytes: Vec<u8>,
}

/// The part of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    program: u32,
    action: u32,
    size_in: u32,
    size_out: u32,
    bytes_in: u64,
    bytes_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    pad: u32,
}

/// How a program is run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// How often.
    pub(super) repeat: u32,
    /// `BPF_F_TEST_*`.
    pub(super) flags: u32,
}

impl Run {
    /// Runs `program` on `frame`; how long one run took on average comes with it.
    pub(super) fn on(self, program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<(Tried, Duration)> {
        const BPF_PROG_TEST_RUN: libc::c_long = 10;

        let Self { repeat, flags } = self;
        let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
        // No program makes a packet longer.
        let mut bytes = vec![0u8; frame.len()];
        let mut attributes = Attributes {
            program: program.as_raw_fd().cast_unsigned(),
            size_in: u32::try_from(frame.len()).map_err(too_long)?,
            size_out: u32::try_from(bytes.len()).map_err(too_long)?,
            bytes_in: frame.as_ptr() as u64,
            bytes_out: bytes.as_mut_ptr() as u64,
            repeat,
            flags,
            ..Attributes::default()
        };
        // aya's own call takes flags for XDP only.
        // SAFETY: the attributes are as long as said and laid out as the kernel's;
        // both buffers live on and are as long as the attributes say, and of the
        // second nobody holds a reference meanwhile.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_TEST_RUN,
                &raw mut attributes,
                size_of::<Attributes>(),
            )
        };
        Errno::result(result)?;
        bytes.truncate(attributes.size_out as usize);
        let tried = Tried {
            action: attributes.action.cast_signed(),
            bytes,
        };
        Ok((tried, Duration::from_nanos(attributes.duration.into())))
    }
}

const _: () = assert!(size_of::<Attributes>() == 80);
