//! Queueing disciplines, as far as filters hang on them (rtnetlink).
//!
//! The attributes of a filter mean something else for each kind of filter, and
//! others' filters hang beside ours: only those of kind `bpf` are looked into.

use std::convert::Infallible;

use netlink_packet_core::{
    NLA_TYPE_MASK, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
};

use super::NetlinkError;
use super::route::RouteSocket;

/// Parent of the qdisc itself (`TC_H_CLSACT`, which is `TC_H_INGRESS`, too).
const CLSACT: u32 = 0xffff_fff1;
/// The qdisc (`TC_H_MAKE(TC_H_CLSACT, 0)`).
const CLSACT_SELF: u32 = 0xffff_0000;

// linux/rtnetlink.h
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
// linux/pkt_cls.h
const TCA_BPF_NAME: u16 = 7;

/// A side of a device, as the parent of its filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Side {
    /// What comes in (`TC_H_MIN_INGRESS`).
    Ingress = 0xffff_fff2,
    /// What leaves (`TC_H_MIN_EGRESS`).
    Egress = 0xffff_fff3,
}

/// A filter of a clsact qdisc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    side: Side,
    handle: u32,
    /// Priority and protocol.
    info: u32,
    /// Its name, if it is a BPF program that has one.
    pub program: Option<String>,
}

/// The filters of both sides of the device `index`. A device that is not there,
/// or has no clsact qdisc, has none.
///
/// # Errors
/// When the kernel refuses the listing.
pub fn filters(socket: &mut RouteSocket, index: u32) -> Result<Vec<Filter>, NetlinkError> {
    let mut found = Vec::new();
    for side in [Side::Ingress, Side::Egress] {
        let request = Message::new(RTM_GETTFILTER, index, 0, side as u32, 0);
        let answers = socket
            .0
            .dump(request)
            .map_err(|e| NetlinkError::new("RTM_GETTFILTER", device(index), e))?;
        found.extend(answers.iter().filter_map(|answer| answer.filter(side)));
    }
    Ok(found)
}

/// Removes a filter from the device `index`.
///
/// # Errors
/// [`NetlinkError::NotFound`] when it is not there any more.
pub fn remove_filter(
    socket: &mut RouteSocket,
    index: u32,
    filter: &Filter,
) -> Result<(), NetlinkError> {
    let Filter {
        side, handle, info, ..
    } = *filter;
    let request = Message::new(RTM_DELTFILTER, index, handle, side as u32, info);
    socket
        .0
        .request(request, 0)
        .map_err(|e| NetlinkError::new("RTM_DELTFILTER", device(index), e))?;
    Ok(())
}

/// The kind of the qdisc that is where clsact would be.
///
/// # Errors
/// When the kernel refuses the listing.
pub fn qdisc(socket: &mut RouteSocket, index: u32) -> Result<Option<String>, NetlinkError> {
    let request = Message::new(RTM_GETQDISC, index, 0, 0, 0);
    let answers = socket
        .0
        .dump(request)
        .map_err(|e| NetlinkError::new("RTM_GETQDISC", device(index), e))?;
    // The kernel lists those of every device.
    let here = answers
        .iter()
        .find(|answer| answer.word(INDEX) == Some(index) && answer.word(PARENT) == Some(CLSACT));
    Ok(here.and_then(|answer| answer.kind()))
}

/// Removes the clsact qdisc of the device `index` if no filter hangs on it;
/// returns whether it did.
///
/// # Errors
/// [`NetlinkError::NotFound`] when there is no such device or qdisc.
pub fn remove_unused_clsact(socket: &mut RouteSocket, index: u32) -> Result<bool, NetlinkError> {
    if !filters(socket, index)?.is_empty() {
        return Ok(false);
    }
    let mut request = Message::new(RTM_DELQDISC, index, CLSACT_SELF, CLSACT, 0);
    // An ingress qdisc has the same place, and is not meant.
    request.add_text(TCA_KIND, "clsact");
    socket
        .0
        .request(request, 0)
        .map_err(|e| NetlinkError::new("RTM_DELQDISC", device(index), e))?;
    Ok(true)
}

fn device(index: u32) -> String {
    format!("device {index}")
}

/// `struct tcmsg`, and the places of its words.
const HEADER: usize = 20;
const INDEX: usize = 4;
const HANDLE: usize = 8;
const PARENT: usize = 12;
const INFO: usize = 16;

/// A message by its bytes.
#[derive(Debug)]
struct Message {
    kind: u16,
    bytes: Vec<u8>,
}

impl Message {
    fn new(kind: u16, index: u32, handle: u32, parent: u32, info: u32) -> Self {
        // The address family, and what fills it up.
        let mut bytes = vec![0; INDEX];
        for word in [index, handle, parent, info] {
            bytes.extend(word.to_ne_bytes());
        }
        Self { kind, bytes }
    }

    fn add_text(&mut self, kind: u16, text: &str) {
        // Of a few letters.
        let length = (text.len() + 5) as u16;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    }

    fn attribute(&self, kind: u16) -> Option<&[u8]> {
        attribute(self.bytes.get(HEADER..)?, kind)
    }

    fn kind(&self) -> Option<String> {
        self.attribute(TCA_KIND).map(text)
    }

    fn filter(&self, side: Side) -> Option<Filter> {
        let handle = self.word(HANDLE)?;
        // What is listed without a handle is the priority, not a filter of it.
        if self.kind != RTM_NEWTFILTER || handle == 0 {
            return None;
        }
        let program = self
            .attribute(TCA_OPTIONS)
            .filter(|_| self.kind().as_deref() == Some("bpf"))
            .and_then(|options| attribute(options, TCA_BPF_NAME))
            .map(text);
        Some(Filter {
            side,
            handle,
            info: self.word(INFO)?,
            program,
        })
    }
}

/// The first attribute of a kind in `bytes`, without its header.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [a, b, c, d, ..] = *bytes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(4..length)?;
        if u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes)).into_owned()
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self {
            kind: header.message_type,
            bytes: payload.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(kind: &str, handle: u32, options: &[u8]) -> Message {
        let mut message = Message::new(RTM_NEWTFILTER, 3, handle, Side::Ingress as u32, 7 << 16);
        message.add_text(TCA_KIND, kind);
        let length = (options.len() + 4) as u16;
        message.bytes.extend(length.to_ne_bytes());
        message.bytes.extend((0x8000 | TCA_OPTIONS).to_ne_bytes());
        message.bytes.extend(options);
        message
    }

    /// An attribute 7 of six bytes: a name, or half of a flower's Ethernet address.
    const SEVEN: [u8; 12] = [10, 0, 7, 0, b'g', b'u', b'a', b'r', b'd', 0, 0, 0];

    #[test]
    fn only_bpf_filters_have_a_program() {
        let filter = listed("bpf", 1, &SEVEN).filter(Side::Ingress).unwrap();
        assert_eq!(filter.program.as_deref(), Some("guard"));
        assert_eq!((filter.handle, filter.info), (1, 7 << 16));
        let filter = listed("flower", 1, &SEVEN).filter(Side::Ingress).unwrap();
        assert_eq!(filter.program, None);
    }

    #[test]
    fn a_priority_is_no_filter() {
        assert_eq!(listed("bpf", 0, &SEVEN).filter(Side::Ingress), None);
    }

    #[test]
    fn what_is_cut_short_is_none() {
        let whole = listed("bpf", 1, &SEVEN);
        for length in 0..whole.bytes.len() {
            let cut = Message {
                kind: RTM_NEWTFILTER,
                bytes: whole.bytes[..length].to_vec(),
            };
            if let Some(filter) = cut.filter(Side::Ingress) {
                assert_eq!(filter.program, None, "of {length} bytes");
            }
        }
    }
}
