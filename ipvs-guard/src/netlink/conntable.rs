//! The connection table of IPVS, as `/proc/net/ip_vs_conn` prints it
//! (`ip_vs_conn_seq_show`, net/netfilter/ipvs/ip_vs_conn.c; the same from 5.10
//! to 7.2).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipvs_guard_common::state::ConnState;

use super::ipvs::Protocol;

/// The table of the calling thread's namespace. Not `/proc/net`: that is the
/// thread group leader's.
const TABLE: &str = "/proc/thread-self/net/ip_vs_conn";

/// No line is longer: the fields take under 200 bytes and the data of a
/// persistence engine at most 255 (`IP_VS_PEDATA_MAXLEN`).
const LINE_MAX: u64 = 1024;

/// What went wrong with the connection table.
#[derive(Debug, thiserror::Error)]
pub enum ConnTableError {
    /// The kernel has no IPVS now: the module is not loaded.
    #[error("ip_vs is not loaded: there is no {TABLE}")]
    Absent,
    /// It could not be read.
    #[error("reading {TABLE}: {0}")]
    Io(#[source] io::Error),
    /// A line that is not of the form the kernel prints.
    #[error("{TABLE} line {line}: {reason}")]
    Malformed {
        /// Counted from 1, the heading included.
        line: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// One entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnEntry {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Client; port 0 in a persistence template.
    pub client: SocketAddr,
    /// Virtual service.
    pub service: SocketAddr,
    /// Real server.
    pub destination: SocketAddr,
    /// State; none where it is not one of TCP's (`UDP`, `NORMAL`, `ASSURED`).
    pub state: Option<ConnState>,
    /// Seconds until the entry expires, unless a packet prolongs it.
    pub expires: u64,
}

impl ConnEntry {
    /// Reads one line, without its newline, whatever follows the last field.
    ///
    /// # Errors
    /// The field that is missing or no such value.
    pub fn parse(line: &str) -> Result<Self, &'static str> {
        let mut fields = line.split_ascii_whitespace();
        let mut next = |missing| fields.next().ok_or(missing);
        Ok(Self {
            protocol: protocol(next("no protocol")?).ok_or("unknown protocol")?,
            client: endpoint(next("no client")?, next("no client port")?).ok_or("bad client")?,
            service: endpoint(next("no service")?, next("no service port")?)
                .ok_or("bad service")?,
            destination: endpoint(next("no destination")?, next("no destination port")?)
                .ok_or("bad destination")?,
            state: state(next("no state")?),
            expires: next("no expiry")?.parse().map_err(|_| "bad expiry")?,
        })
    }
}

/// Entries one after the other, as the kernel prints them: nothing is held in
/// memory but a line, and the table may change meanwhile.
#[derive(Debug)]
pub struct ConnTable<R> {
    reader: R,
    line: u64,
    buffer: Vec<u8>,
}

impl ConnTable<BufReader<File>> {
    /// Opens the table of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`ConnTableError::Absent`] when ip_vs is not loaded.
    pub fn open() -> Result<Self, ConnTableError> {
        match File::open(TABLE) {
            Ok(file) => Ok(Self::new(BufReader::with_capacity(64 * 1024, file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ConnTableError::Absent),
            Err(error) => Err(ConnTableError::Io(error)),
        }
    }
}

impl<R: BufRead> ConnTable<R> {
    /// Reads a table in the kernel's form from anywhere.
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            line: 0,
            buffer: Vec::with_capacity(256),
        }
    }

    fn read_line(&mut self) -> io::Result<usize> {
        self.buffer.clear();
        self.line += 1;
        (&mut self.reader)
            .take(LINE_MAX)
            .read_until(b'\n', &mut self.buffer)
    }
}

impl<R: BufRead> Iterator for ConnTable<R> {
    type Item = Result<ConnEntry, ConnTableError>;

    /// The next entry. After [`ConnTableError::Malformed`] the next line
    /// follows, after [`ConnTableError::Io`] the same call may be made again.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.read_line() {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(ConnTableError::Io(error))),
            }
            if self.line == 1 && self.buffer.starts_with(b"Pro ") {
                continue;
            }
            let entry = std::str::from_utf8(fields_of(&self.buffer))
                .map_err(|_| "not text")
                .and_then(ConnEntry::parse);
            let line = self.line;
            return Some(entry.map_err(|reason| ConnTableError::Malformed { line, reason }));
        }
    }
}

/// The part of a line before a persistence engine's data, which is any bytes.
fn fields_of(line: &[u8]) -> &[u8] {
    let end = line
        .iter()
        .position(|byte| !byte.is_ascii())
        .unwrap_or(line.len());
    line.get(..end).unwrap_or_default()
}

/// The names of `ip_vs_proto_name` (net/netfilter/ipvs/ip_vs_core.c).
fn protocol(name: &str) -> Option<Protocol> {
    let number = match name {
        "IP" => 0,
        "ICMP" => 1,
        "TCP" => 6,
        "UDP" => 17,
        "ICMPv6" => 58,
        "SCTP" => 132,
        other => other.strip_prefix("IP_")?.parse().ok()?,
    };
    Some(Protocol::from(number))
}

/// IPv4 as eight hexadecimal digits, IPv6 as eight groups of four (`%pI6`).
fn endpoint(address: &str, port: &str) -> Option<SocketAddr> {
    let address = if address.contains(':') {
        IpAddr::V6(address.parse::<Ipv6Addr>().ok()?)
    } else {
        IpAddr::V4(Ipv4Addr::from_bits(hex(address, 8)?))
    };
    Some(SocketAddr::new(address, u16::try_from(hex(port, 4)?).ok()?))
}

fn hex(digits: &str, length: usize) -> Option<u32> {
    let whole = digits.len() == length && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    whole.then(|| u32::from_str_radix(digits, 16).ok())?
}

fn state(name: &str) -> Option<ConnState> {
    (0..)
        .map_while(ConnState::from_raw)
        .find(|state| state.name() == name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE4: &str = "\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP C0000202 9C40 CB007101 0050 C6336402 1F90 TIME_WAIT       117
TCP C0000202 9C41 CB007101 0050 C6336406 1F90 ESTABLISHED     899
UDP C0000202 0000 CB007101 13C4 C6336406 13C4 NONE            299 sip a84b4c76e66710@host
";
    const LINE6: &str = "TCP 2001:0db8:0001:0000:0000:0000:0000:0002 9C40 \
        2001:0db8:0003:0000:0000:0000:0000:0001 0050 2001:0db8:0002:0000:0000:0000:0000:0002 1F90 \
        SYN_RECV         59";

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_table_is_read_line_by_line() {
        let entries: Vec<_> = ConnTable::new(TABLE4.as_bytes())
            .map(Result::unwrap)
            .collect();
        assert_eq!(entries.len(), 3);
        assert_eq!(
            entries[0],
            ConnEntry {
                protocol: Protocol::Tcp,
                client: address("192.0.2.2:40000"),
                service: address("203.0.113.1:80"),
                destination: address("198.51.100.2:8080"),
                state: Some(ConnState::TimeWait),
                expires: 117,
            }
        );
        assert_eq!(entries[1].state, Some(ConnState::Established));
        assert_eq!(
            (entries[2].protocol, entries[2].client.port()),
            (Protocol::Udp, 0)
        );
    }

    #[test]
    fn ipv6_is_read() {
        let entry = ConnEntry::parse(LINE6).unwrap();
        assert_eq!(entry.client, address("[2001:db8:1::2]:40000"));
        assert_eq!(entry.service, address("[2001:db8:3::1]:80"));
        assert_eq!(entry.destination, address("[2001:db8:2::2]:8080"));
        assert_eq!((entry.state, entry.expires), (Some(ConnState::SynRecv), 59));
    }

    #[test]
    fn the_destination_may_be_of_the_other_family() {
        let line =
            "TCP C0000202 9C40 CB007101 0050 2001:0db8:0002:0000:0000:0000:0000:0002 1F90 CLOSE 9";
        assert_eq!(
            ConnEntry::parse(line).unwrap().destination,
            address("[2001:db8:2::2]:8080")
        );
    }

    #[test]
    fn unknown_names_are_kept_apart() {
        let line = "IP_200 C0000202 0000 CB007101 0000 C6336402 0000 ASSURED 1";
        let entry = ConnEntry::parse(line).unwrap();
        assert_eq!((entry.protocol, entry.state), (Protocol::Other(200), None));
        assert!(ConnEntry::parse(&line.replace("IP_200", "XYZ")).is_err());
    }

    #[test]
    fn a_bad_line_is_reported_by_its_number_and_the_next_is_read() {
        let text =
            "Pro FromIP\nTCP C0000202\nTCP +0000202 9C40 CB007101 0050 C6336402 1F90 NONE 1\n";
        let table = format!("{text}{LINE6} \u{fffd}data\n");
        let rows: Vec<_> = ConnTable::new(table.as_bytes()).collect();
        assert!(matches!(
            rows[0],
            Err(ConnTableError::Malformed {
                line: 2,
                reason: "no client port"
            })
        ));
        assert!(matches!(
            rows[1],
            Err(ConnTableError::Malformed {
                line: 3,
                reason: "bad client"
            })
        ));
        assert!(rows[2].is_ok() && rows.len() == 3);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            prop_assert!(ConnTable::new(bytes.as_slice()).count() <= bytes.len() + 1);
        }

        #[test]
        fn any_text_of_the_right_letters_is_taken_or_refused(line in "(TCP|UDP|IP_9)( [0-9A-Fa-f:+_]{0,40}){0,10}") {
            if let Ok(entry) = ConnEntry::parse(&line) {
                prop_assert!(line.contains(&entry.expires.to_string()));
            }
        }
    }
}
