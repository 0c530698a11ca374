//! The one question the probes ask of a TCP header.

/// TCP flag bits in byte 13 of the header.
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The first 16 bytes of a TCP header, in words, each as memory has it: its flags
/// are among them, and no header is shorter.
pub type Start = [u64; 2];

/// The sequence number of a header whose flags say "first packet of a
/// connection" (SYN, neither ACK nor RST).
///
/// `tcp_state_idx` (ip_vs_proto_tcp.c) looks at RST before SYN, so a segment
/// with both is a reset to IPVS too.
#[inline(always)]
pub const fn syn_seq(start: Start) -> Option<u32> {
    let [_, _, _, _, seq @ ..] = start[0].to_ne_bytes();
    let flags = start[1].to_ne_bytes()[5];
    if flags & (SYN | ACK | RST) != SYN {
        return None;
    }
    Some(u32::from_be_bytes(seq))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_syn_opens_a_connection() {
        let mut header = [0u8; 16];
        header[4..8].copy_from_slice(&[1, 2, 3, 4]);
        for flags in 0..=255u8 {
            header[13] = flags;
            let (words, _) = header.as_chunks::<8>();
            let start = [words[0], words[1]].map(u64::from_ne_bytes);
            let expect = flags & SYN != 0 && flags & ACK == 0 && flags & RST == 0;
            assert_eq!(
                syn_seq(start),
                expect.then_some(0x0102_0304),
                "flags {flags:#x}"
            );
        }
    }
}
