//! Netlink by the byte: for what the program under test must not vouch for
//! itself, and for what it has no call for.

use std::os::fd::{AsRawFd as _, OwnedFd};

use ipvs_guard::netns::NetNs;
use nix::{
    errno::Errno,
    libc,
    sys::socket::{
        AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
    },
};

use super::capture::NO_FLAGS;

const HEADER: usize = size_of::<libc::nlmsghdr>();

/// A socket of one network namespace.
pub(crate) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

/// The payload of a message: a fixed header, then attributes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl Body {
    /// Adds an attribute.
    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = value.len() as u16 + 4;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds an attribute of text.
    pub(crate) fn text(self, kind: u16, text: &str) -> Self {
        self.attribute(kind, &[text.as_bytes(), b"\0"].concat())
    }

    /// Adds an attribute that holds others.
    pub(crate) fn nest(self, kind: u16, inner: Self) -> Self {
        self.attribute(kind | libc::NLA_F_NESTED as u16, &inner.0)
    }
}

/// The attributes of a payload behind its fixed header.
pub(crate) fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let [a, b, c, d, ..] = *bytes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let kind = u16::from_ne_bytes([c, d]) & libc::NLA_TYPE_MASK as u16;
        found.push((kind, &bytes[4..length]));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

impl Netlink {
    /// Opens a socket in a namespace.
    pub(crate) fn open(netns: &NetNs, protocol: SockProtocol) -> Self {
        let fd = netns
            .run(|| {
                let flags = SockFlag::SOCK_CLOEXEC;
                socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).unwrap()
            })
            .unwrap();
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).unwrap();
        Self { fd, sequence: 0 }
    }

    /// Sends messages (kind, flags, payload) as one, and returns the payloads of
    /// the answers to those that ask for one, by `NLM_F_ACK` or `NLM_F_DUMP`.
    pub(crate) fn exchange(
        &mut self,
        messages: &[(u16, i32, Body)],
    ) -> Result<Vec<Vec<u8>>, Errno> {
        let mut bytes = Vec::new();
        let mut awaited = 0;
        for (kind, flags, body) in messages {
            self.sequence += 1;
            awaited += usize::from(flags & (libc::NLM_F_ACK | libc::NLM_F_DUMP) != 0);
            let flags = (flags | libc::NLM_F_REQUEST) as u16;
            bytes.extend(((HEADER + body.0.len()) as u32).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(flags.to_ne_bytes());
            bytes.extend(self.sequence.to_ne_bytes());
            bytes.extend(0u32.to_ne_bytes());
            bytes.extend(&body.0);
        }
        send(self.fd.as_raw_fd(), &bytes, NO_FLAGS).unwrap();
        let mut answers = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        while awaited > 0 {
            let length = recv(self.fd.as_raw_fd(), &mut buffer, NO_FLAGS).unwrap();
            let mut rest = &buffer[..length];
            while let [a, b, c, d, e, f, ..] = *rest {
                let length = u32::from_ne_bytes([a, b, c, d]) as usize;
                let payload = &rest[HEADER..length];
                match i32::from(u16::from_ne_bytes([e, f])) {
                    libc::NLMSG_ERROR => {
                        let code = i32::from_ne_bytes(payload[..4].try_into().unwrap());
                        if code != 0 {
                            return Err(Errno::from_raw(-code));
                        }
                        awaited -= 1;
                    }
                    libc::NLMSG_DONE => awaited -= 1,
                    _ => answers.push(payload.to_vec()),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
        Ok(answers)
    }
}
