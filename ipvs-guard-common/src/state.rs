//! The TCP states of an IPVS connection entry and its forwarding method.

/// State of a TCP connection entry (`enum` in include/net/ip_vs.h, 5.10 to 7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ConnState {
    /// Just scheduled; no packet has passed yet.
    None = 0,
    /// Data flows.
    Established = 1,
    /// The server opened.
    SynSent = 2,
    /// A SYN was forwarded, its handshake is not complete.
    SynRecv = 3,
    /// One side closed.
    FinWait = 4,
    /// Closed; the entry stays for 120 s.
    TimeWait = 5,
    /// Reset, or both sides closed.
    Close = 6,
    /// The client closed first.
    CloseWait = 7,
    /// The last acknowledgement is on its way.
    LastAck = 8,
    /// Never entered by forwarded traffic.
    Listen = 9,
    /// SYN-ACK seen (SYN cookies of a defended service).
    SynAck = 10,
}

impl ConnState {
    /// The state for its number in `ip_vs_conn.state`.
    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Option<Self> {
        Some(match raw {
            0 => Self::None,
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::FinWait,
            5 => Self::TimeWait,
            6 => Self::Close,
            7 => Self::CloseWait,
            8 => Self::LastAck,
            9 => Self::Listen,
            10 => Self::SynAck,
            _ => return None,
        })
    }

    /// The name that /proc/net/ip_vs_conn and `ipvsadm -Lnc` print
    /// (`tcp_state_name_table`, net/netfilter/ipvs/ip_vs_proto_tcp.c).
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::FinWait => "FIN_WAIT",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::Listen => "LISTEN",
            Self::SynAck => "SYNACK",
        }
    }
}

/// How packets reach the real server (`IP_VS_CONN_F_FWD_MASK`, the low three
/// bits of `ip_vs_conn.flags`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// Masquerading (NAT).
    Masq,
    /// To a socket of the node itself.
    Local,
    /// Tunnelling.
    Tun,
    /// Direct routing.
    Dr,
    /// To the original destination (cache).
    Bypass,
}

impl Forwarding {
    /// The method in the low three bits of `ip_vs_conn.flags`.
    pub const fn from_flags(flags: u32) -> Option<Self> {
        Some(match flags & 7 {
            0 => Self::Masq,
            1 => Self::Local,
            2 => Self::Tun,
            3 => Self::Dr,
            4 => Self::Bypass,
            _ => return None,
        })
    }

    /// The value of `ipvs.forwarding` in an event.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Masq => "masq",
            Self::Local => "local",
            Self::Tun => "tun",
            Self::Dr => "dr",
            Self::Bypass => "bypass",
        }
    }
}
