//! One request, all its answers: the exchange every netlink protocol shares.

use std::fmt::Debug;
use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// Why an exchange failed, before it is known what it was for.
#[derive(Debug)]
pub(super) enum Failure {
    Io(io::Error),
    Malformed(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error.to_string())
    }
}

#[derive(Debug)]
pub(super) struct Transport {
    socket: Socket,
    sequence: u32,
}

impl Transport {
    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends one message and collects what the kernel answers until it says
    /// that this was all. `flags` beside `NLM_F_REQUEST` and `NLM_F_ACK`.
    pub(super) fn request<T>(&mut self, message: T, flags: u16) -> Result<Vec<T>, Failure>
    where
        T: NetlinkSerializable + NetlinkDeserializable + Debug,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        uninterrupted(|| self.socket.send(&bytes, 0))?;

        let mut answers = Vec::new();
        loop {
            let (datagram, _) = uninterrupted(|| self.socket.recv_from_full())?;
            if collect(&datagram, self.sequence, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// Like [`Self::request`], for everything of a kind.
    pub(super) fn dump<T>(&mut self, message: T) -> Result<Vec<T>, Failure>
    where
        T: NetlinkSerializable + NetlinkDeserializable + Debug,
    {
        self.request(message, NLM_F_DUMP)
    }
}

fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Takes the messages of one datagram; true once the last answer was there.
pub(super) fn collect<T>(
    datagram: &[u8],
    sequence: u32,
    answers: &mut Vec<T>,
) -> Result<bool, Failure>
where
    T: NetlinkDeserializable,
{
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<T>::deserialize(rest)?;
        // Messages are aligned to four bytes, the last one need not be padded.
        let length = (message.header.length as usize).next_multiple_of(4).max(16);
        rest = rest.get(length..).unwrap_or_default();
        if message.header.sequence_number != sequence {
            continue;
        }
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => answers.push(inner),
            NetlinkPayload::Error(error) => match error.code {
                None => return Ok(true),
                Some(_) => return Err(error.to_io().into()),
            },
            // From 4.20 a dump that failed half-way says so in its end.
            NetlinkPayload::Done(done) if done.code < 0 => {
                return Err(io::Error::from_raw_os_error(done.code.saturating_neg()).into());
            }
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Overrun(_) => return Err(Failure::Malformed("data lost".to_owned())),
            NetlinkPayload::Noop | _ => {}
        }
    }
    Ok(false)
}
