//! A packet program run on bytes instead of a device's packets.

use std::{os::fd::AsFd as _, time::Duration};

use ipvs_guard_common::guard;

use super::{
    load::{BpfError, Loaded},
    run::{Run, Tried},
};

/// A packet program that can be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// TC, on the way in by a device with Ethernet headers.
    Tc,
    /// The same; the packet comes with the sum of its bytes as a device counted
    /// it (`CHECKSUM_COMPLETE`), and the kernel checks that the sum is right
    /// afterwards. From 6.15, and in stable releases that took it over.
    TcSummed,
    /// XDP.
    Xdp,
    /// TC, on the way out by a device with Ethernet headers.
    TcOut,
    /// A TC program that does nothing: what the others are measured against.
    TcIdle,
    /// The same by XDP.
    XdpIdle,
}

impl Loaded {
    /// Runs a program on `frame` (`BPF_PROG_TEST_RUN`), loading it first if that was
    /// not done. The packet seems to come in by `lo` of this namespace, whose
    /// Ethernet address is all zeros.
    ///
    /// # Errors
    /// [`BpfError::Load`] when the kernel refuses the program, [`BpfError::Trial`]
    /// when it refuses the packet.
    pub fn try_packet(&mut self, packet: Packet, frame: &[u8]) -> Result<Tried, BpfError> {
        self.run_on(packet, frame, 1).map(|(tried, _)| tried)
    }

    /// Runs a program `times` times on `frame`, and returns how long one run takes
    /// on average.
    ///
    /// # Errors
    /// As [`Self::try_packet`].
    pub fn time_packet(
        &mut self,
        packet: Packet,
        frame: &[u8],
        times: u32,
    ) -> Result<Duration, BpfError> {
        self.run_on(packet, frame, times).map(|(_, time)| time)
    }

    fn run_on(
        &mut self,
        packet: Packet,
        frame: &[u8],
        repeat: u32,
    ) -> Result<(Tried, Duration), BpfError> {
        const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 1 << 2;

        let program = match packet {
            Packet::Tc | Packet::TcSummed => guard::INGRESS,
            Packet::TcOut => guard::EGRESS,
            Packet::TcIdle => guard::IDLE,
            Packet::Xdp => guard::XDP,
            Packet::XdpIdle => guard::IDLE_XDP,
        };
        let fd = match packet {
            Packet::Xdp | Packet::XdpIdle => self.xdp(program)?.fd(),
            Packet::Tc | Packet::TcSummed | Packet::TcOut | Packet::TcIdle => {
                self.classifier(program)?.fd()
            }
        };
        let fd = fd.map_err(|error| BpfError::Load(error.into()))?.as_fd();
        let flags = match packet {
            Packet::TcSummed => BPF_F_TEST_SKB_CHECKSUM_COMPLETE,
            Packet::Tc | Packet::Xdp | Packet::TcOut | Packet::TcIdle | Packet::XdpIdle => 0,
        };
        let run = Run { repeat, flags };
        run.on(fd, frame)
            .map_err(|source| BpfError::Trial { program, source })
    }
}
