//! The wire form: a generic netlink message and its attributes.

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NetlinkDeserializable, NetlinkHeader,
    NetlinkSerializable, NlasIterator,
};

/// `IPVS_GENL_NAME`.
pub(super) const FAMILY: &str = "IPVS";
/// `IPVS_GENL_VERSION`.
pub(super) const VERSION: u8 = 1;

/// `struct genlmsghdr`: command, version, two reserved bytes.
const HEADER_LEN: usize = 4;

/// `IPVS_CMD_*`.
pub(super) mod cmd {
    pub(in super::super) const NEW_SERVICE: u8 = 1;
    pub(in super::super) const SET_SERVICE: u8 = 2;
    pub(in super::super) const DEL_SERVICE: u8 = 3;
    pub(in super::super) const GET_SERVICE: u8 = 4;
    pub(in super::super) const NEW_DEST: u8 = 5;
    pub(in super::super) const SET_DEST: u8 = 6;
    pub(in super::super) const DEL_DEST: u8 = 7;
    pub(in super::super) const GET_DEST: u8 = 8;
    pub(in super::super) const NEW_DAEMON: u8 = 9;
    pub(in super::super) const DEL_DAEMON: u8 = 10;
    pub(in super::super) const GET_DAEMON: u8 = 11;
    pub(in super::super) const GET_INFO: u8 = 15;
    pub(in super::super) const FLUSH: u8 = 17;
}

/// `IPVS_CMD_ATTR_*`, the outermost attributes.
pub(super) mod attr {
    pub(in super::super) const SERVICE: u16 = 1;
    pub(in super::super) const DEST: u16 = 2;
    pub(in super::super) const DAEMON: u16 = 3;
}

/// The controller, which knows the other families
/// (include/uapi/linux/genetlink.h).
pub(super) mod ctrl {
    use super::{Attributes, DecodeError};

    pub(in super::super) const ID: u16 = 16;
    pub(in super::super) const VERSION: u8 = 2;
    pub(in super::super) const CMD_GETFAMILY: u8 = 3;
    const ATTR_FAMILY_ID: u16 = 1;
    const ATTR_FAMILY_NAME: u16 = 2;

    /// The family's number, when this is the answer about the one of that name.
    pub(in super::super) fn family_id(
        answer: &[u8],
        name: &str,
    ) -> Result<Option<u16>, DecodeError> {
        let attributes = Attributes(answer);
        match attributes.text(ATTR_FAMILY_NAME)? {
            Some(found) if found == name => attributes.u16(ATTR_FAMILY_ID, "family id").map(Some),
            _ => Ok(None),
        }
    }
}

/// A message of any generic netlink family, its attributes not yet taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GenlMessage {
    family: u16,
    command: u8,
    version: u8,
    pub(super) attributes: Vec<u8>,
}

impl GenlMessage {
    pub(super) fn new(family: u16, command: u8, version: u8, attributes: &[DefaultNla]) -> Self {
        Self {
            family,
            command,
            version,
            attributes: emit(attributes),
        }
    }
}

impl NetlinkSerializable for GenlMessage {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        HEADER_LEN + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(HEADER_LEN);
        header.copy_from_slice(&[self.command, self.version, 0, 0]);
        attributes.copy_from_slice(&self.attributes);
    }
}

impl NetlinkDeserializable for GenlMessage {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let [command, version, _, _, attributes @ ..] = payload else {
            return Err(DecodeError::buffer_too_small(payload.len(), HEADER_LEN));
        };
        Ok(Self {
            family: header.message_type,
            command: *command,
            version: *version,
            attributes: attributes.to_vec(),
        })
    }
}

/// Attributes one after the other, as the kernel sent them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the first attribute of this kind.
    pub(super) fn find(self, kind: u16) -> Result<Option<&'a [u8]>, DecodeError> {
        for attribute in NlasIterator::new(self.0) {
            let attribute = attribute?;
            if attribute.kind() == kind {
                let end = usize::from(attribute.length());
                return Ok(attribute.into_inner().get(4..end));
            }
        }
        Ok(None)
    }

    fn require(self, kind: u16, name: &str) -> Result<&'a [u8], DecodeError> {
        self.find(kind)?
            .ok_or_else(|| DecodeError::from(format!("{name} is missing")))
    }

    /// The first `N` bytes of an attribute that has at least as many.
    pub(super) fn bytes<const N: usize>(
        self,
        kind: u16,
        name: &str,
    ) -> Result<[u8; N], DecodeError> {
        let value = self.require(kind, name)?;
        value
            .first_chunk()
            .copied()
            .ok_or_else(|| short(name, value))
    }

    pub(super) fn nested(self, kind: u16, name: &str) -> Result<Self, DecodeError> {
        self.require(kind, name).map(Self)
    }

    pub(super) fn u16(self, kind: u16, name: &str) -> Result<u16, DecodeError> {
        self.bytes(kind, name).map(u16::from_ne_bytes)
    }

    pub(super) fn be16(self, kind: u16, name: &str) -> Result<u16, DecodeError> {
        self.bytes(kind, name).map(u16::from_be_bytes)
    }

    pub(super) fn u32(self, kind: u16, name: &str) -> Result<u32, DecodeError> {
        self.bytes(kind, name).map(u32::from_ne_bytes)
    }

    /// An unsigned number of four or eight bytes.
    pub(super) fn number(self, kind: u16, name: &str) -> Result<u64, DecodeError> {
        let value = self.require(kind, name)?;
        if let Ok(bytes) = value.try_into() {
            Ok(u64::from_ne_bytes(bytes))
        } else if let Ok(bytes) = value.try_into() {
            Ok(u32::from_ne_bytes(bytes).into())
        } else {
            Err(short(name, value))
        }
    }

    /// Text up to its closing zero byte.
    pub(super) fn text(self, kind: u16) -> Result<Option<&'a str>, DecodeError> {
        let Some(value) = self.find(kind)? else {
            return Ok(None);
        };
        let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(text)
            .map(Some)
            .map_err(|_| DecodeError::from(format!("attribute {kind} is no text")))
    }
}

fn short(name: &str, value: &[u8]) -> DecodeError {
    DecodeError::from(format!("{name} has {} bytes", value.len()))
}

/// An attribute made of attributes.
pub(super) fn nest(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    DefaultNla::new(kind | NLA_F_NESTED, emit(attributes))
}

/// Text with the closing zero byte that `NLA_NUL_STRING` asks for.
pub(super) fn text(kind: u16, text: &str) -> DefaultNla {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    DefaultNla::new(kind, bytes)
}

pub(super) fn value<const N: usize>(kind: u16, bytes: [u8; N]) -> DefaultNla {
    DefaultNla::new(kind, bytes.to_vec())
}

fn emit(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
    use proptest::prelude::*;

    use super::super::super::transport::collect;
    use super::*;

    fn message() -> GenlMessage {
        GenlMessage::new(
            0x1d,
            cmd::NEW_DEST,
            VERSION,
            &[nest(attr::SERVICE, &[text(6, "rr")]), value(3, [1, 2, 3])],
        )
    }

    #[test]
    fn a_message_keeps_its_form() {
        let mut outer = NetlinkMessage::new(
            NetlinkHeader::default(),
            NetlinkPayload::InnerMessage(message()),
        );
        outer.finalize();
        let mut bytes = vec![0; outer.buffer_len()];
        outer.serialize(&mut bytes);
        #[rustfmt::skip]
        assert_eq!(bytes[16..], [
            cmd::NEW_DEST, VERSION, 0, 0,
            12, 0, 1, 0x80, 7, 0, 6, 0, b'r', b'r', 0, 0,
            7, 0, 3, 0, 1, 2, 3, 0,
        ]);
        assert_eq!(
            NetlinkMessage::deserialize(&bytes).unwrap().payload,
            outer.payload
        );
    }

    #[test]
    fn attributes_are_found_and_missed_by_name() {
        let message = message();
        let attributes = Attributes(&message.attributes);
        assert_eq!(
            attributes.nested(1, "service").unwrap().text(6).unwrap(),
            Some("rr")
        );
        assert_eq!(attributes.bytes(3, "three").unwrap(), [1, 2, 3]);
        assert_eq!(
            attributes.u32(3, "three").unwrap_err().to_string(),
            "three has 3 bytes"
        );
        assert_eq!(
            attributes.u32(9, "weight").unwrap_err().to_string(),
            "weight is missing"
        );
    }

    proptest! {
        #[test]
        fn any_datagram_is_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512), sequence in any::<u32>()) {
            let mut answers = Vec::<GenlMessage>::new();
            drop(collect(&bytes, sequence, &mut answers));
        }

        /// As above with a true header, so that more than its length is looked at.
        #[test]
        fn any_payload_is_taken_or_refused(kind in 0u16..32, payload in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut bytes = (payload.len() as u32 + 16).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(&payload);
            let mut answers = Vec::<GenlMessage>::new();
            if collect(&bytes, 0, &mut answers).is_ok() {
                for answer in &answers {
                    drop(ctrl::family_id(&answer.attributes, FAMILY));
                }
            }
        }
    }
}
