//! Services and destinations of IPVS over its generic netlink family
//! (`ip_vs_genl_ops`, net/netfilter/ipvs/ip_vs_ctl.c; constants of
//! include/uapi/linux/ip_vs.h).

mod daemon;
mod message;
mod types;

use netlink_packet_core::DefaultNla;
use netlink_sys::protocols::NETLINK_GENERIC;

pub use daemon::{Backup, DaemonRole, DaemonStatus};
pub use types::{
    Destination, DestinationStatus, Family, Info, Protocol, Service, ServiceId, ServiceStatus,
    Stats, Tunnel,
};

use super::NetlinkError;
use super::transport::Transport;
use message::{Attributes, GenlMessage, attr, cmd, ctrl};

/// A connection to the IPVS of the network namespace it was opened in.
#[derive(Debug)]
pub struct IpvsSocket {
    transport: Transport,
    family: u16,
}

impl IpvsSocket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// Never makes the kernel load ip_vs: asking for the family by its name
    /// would (`ctrl_getfamily` calls `request_module`, net/netlink/genetlink.c),
    /// so all families are listed instead.
    ///
    /// # Errors
    /// [`NetlinkError::FamilyAbsent`] when ip_vs is not loaded.
    pub fn open() -> Result<Self, NetlinkError> {
        const CALL: &str = "CTRL_CMD_GETFAMILY";
        let object = || "IPVS".to_owned();
        let mut transport = Transport::open(NETLINK_GENERIC)
            .map_err(|e| NetlinkError::new("socket", "NETLINK_GENERIC".to_owned(), e))?;
        let families = transport
            .dump(GenlMessage::new(
                ctrl::ID,
                ctrl::CMD_GETFAMILY,
                ctrl::VERSION,
                &[],
            ))
            .map_err(|e| NetlinkError::new(CALL, object(), e))?;
        for family in families {
            let found = ctrl::family_id(&family.attributes, message::FAMILY)
                .map_err(|e| NetlinkError::new(CALL, object(), e))?;
            if let Some(family) = found {
                return Ok(Self { transport, family });
            }
        }
        Err(NetlinkError::FamilyAbsent)
    }

    /// Version of IPVS and size of its connection table.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn info(&mut self) -> Result<Info, NetlinkError> {
        const CALL: &str = "IPVS_CMD_GET_INFO";
        let answers = self.call(CALL, cmd::GET_INFO, &[], || "IPVS".to_owned())?;
        let wrong = |reason: String| NetlinkError::Malformed {
            call: CALL,
            object: "IPVS".to_owned(),
            reason,
        };
        let answer = answers
            .first()
            .ok_or_else(|| wrong("nothing in it".to_owned()))?;
        Info::parse(Attributes(&answer.attributes)).map_err(|e| wrong(e.to_string()))
    }

    /// All services, with their counters.
    ///
    /// # Errors
    /// [`NetlinkError::Privilege`] without CAP_NET_ADMIN.
    pub fn services(&mut self) -> Result<Vec<ServiceStatus>, NetlinkError> {
        self.list(
            "IPVS_CMD_GET_SERVICE",
            cmd::GET_SERVICE,
            &[],
            || "all services".to_owned(),
            |answer| ServiceStatus::parse(answer.nested(attr::SERVICE, "service")?),
        )
    }

    /// All destinations of a service, with their counters. Empty also when there
    /// is no such service (`ip_vs_genl_dump_dests` does not tell).
    ///
    /// # Errors
    /// [`NetlinkError::Privilege`] without CAP_NET_ADMIN.
    pub fn destinations(
        &mut self,
        service: &ServiceId,
    ) -> Result<Vec<DestinationStatus>, NetlinkError> {
        let request = [message::nest(attr::SERVICE, &service.attributes())];
        let object = || format!("destinations of {service}");
        self.list(
            "IPVS_CMD_GET_DEST",
            cmd::GET_DEST,
            &request,
            object,
            |answer| {
                DestinationStatus::parse(
                    answer.nested(attr::DEST, "destination")?,
                    service.family(),
                )
            },
        )
    }

    /// Adds a service. The kernel loads the scheduler's module when it has to.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`]; [`NetlinkError::NotFound`] when there is no such
    /// scheduler.
    pub fn add_service(&mut self, service: &Service) -> Result<(), NetlinkError> {
        self.change_service("IPVS_CMD_NEW_SERVICE", cmd::NEW_SERVICE, service)
    }

    /// Changes scheduler, flags, persistence of a service that exists.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when there is no such service or scheduler.
    pub fn set_service(&mut self, service: &Service) -> Result<(), NetlinkError> {
        self.change_service("IPVS_CMD_SET_SERVICE", cmd::SET_SERVICE, service)
    }

    /// Removes a service and its destinations.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when there is no such service.
    pub fn delete_service(&mut self, service: &ServiceId) -> Result<(), NetlinkError> {
        let request = [message::nest(attr::SERVICE, &service.attributes())];
        self.call("IPVS_CMD_DEL_SERVICE", cmd::DEL_SERVICE, &request, || {
            service.to_string()
        })?;
        Ok(())
    }

    /// Adds a destination to a service.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`]; [`NetlinkError::NotFound`] when there is no such
    /// service.
    pub fn add_destination(
        &mut self,
        service: &ServiceId,
        destination: &Destination,
    ) -> Result<(), NetlinkError> {
        self.change_destination(
            "IPVS_CMD_NEW_DEST",
            cmd::NEW_DEST,
            service,
            destination,
            true,
        )
    }

    /// Changes all of a destination but its address: a forwarding method,
    /// weight or threshold left at its default is set to it.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when there is no such service or destination.
    pub fn set_destination(
        &mut self,
        service: &ServiceId,
        destination: &Destination,
    ) -> Result<(), NetlinkError> {
        self.change_destination(
            "IPVS_CMD_SET_DEST",
            cmd::SET_DEST,
            service,
            destination,
            true,
        )
    }

    /// Removes a destination; its connections stay until they expire.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when there is no such service or destination.
    pub fn delete_destination(
        &mut self,
        service: &ServiceId,
        destination: &Destination,
    ) -> Result<(), NetlinkError> {
        self.change_destination(
            "IPVS_CMD_DEL_DEST",
            cmd::DEL_DEST,
            service,
            destination,
            false,
        )
    }

    /// The daemons that run in the namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Privilege`] without CAP_NET_ADMIN.
    pub fn daemons(&mut self) -> Result<Vec<DaemonStatus>, NetlinkError> {
        self.list(
            "IPVS_CMD_GET_DAEMON",
            cmd::GET_DAEMON,
            &[],
            || "sync daemons".to_owned(),
            |answer| DaemonStatus::parse(answer.nested(attr::DAEMON, "daemon")?),
        )
    }

    /// Starts a daemon that receives. It holds ip_vs as long as it runs.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when there is one.
    pub fn start_backup(&mut self, backup: &Backup) -> Result<(), NetlinkError> {
        let request = [message::nest(attr::DAEMON, &backup.attributes())];
        self.call("IPVS_CMD_NEW_DAEMON", cmd::NEW_DAEMON, &request, || {
            format!("backup daemon on {}", backup.device)
        })?;
        Ok(())
    }

    /// Ends the daemon that receives.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when there is none.
    pub fn stop_backup(&mut self) -> Result<(), NetlinkError> {
        let request = [message::nest(attr::DAEMON, &Backup::key())];
        self.call("IPVS_CMD_DEL_DAEMON", cmd::DEL_DAEMON, &request, || {
            "backup daemon".to_owned()
        })?;
        Ok(())
    }

    /// Removes all services of the namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Privilege`] without CAP_NET_ADMIN.
    pub fn flush(&mut self) -> Result<(), NetlinkError> {
        self.call("IPVS_CMD_FLUSH", cmd::FLUSH, &[], || {
            "all services".to_owned()
        })?;
        Ok(())
    }

    fn change_service(
        &mut self,
        call: &'static str,
        command: u8,
        service: &Service,
    ) -> Result<(), NetlinkError> {
        let request = [message::nest(attr::SERVICE, &service.attributes())];
        self.call(call, command, &request, || {
            format!("{} scheduler {}", service.id, service.scheduler)
        })?;
        Ok(())
    }

    fn change_destination(
        &mut self,
        call: &'static str,
        command: u8,
        service: &ServiceId,
        destination: &Destination,
        whole: bool,
    ) -> Result<(), NetlinkError> {
        let attributes = if whole {
            destination.attributes()
        } else {
            destination.key()
        };
        let request = [
            message::nest(attr::SERVICE, &service.attributes()),
            message::nest(attr::DEST, &attributes),
        ];
        self.call(call, command, &request, || {
            format!("{} of {service}", destination.address)
        })?;
        Ok(())
    }

    fn call(
        &mut self,
        call: &'static str,
        command: u8,
        attributes: &[DefaultNla],
        object: impl Fn() -> String,
    ) -> Result<Vec<GenlMessage>, NetlinkError> {
        let request = GenlMessage::new(self.family, command, message::VERSION, attributes);
        self.transport
            .request(request, 0)
            .map_err(|e| NetlinkError::new(call, object(), e))
    }

    fn list<T>(
        &mut self,
        call: &'static str,
        command: u8,
        attributes: &[DefaultNla],
        object: impl Fn() -> String,
        parse: impl Fn(Attributes<'_>) -> Result<T, netlink_packet_core::DecodeError>,
    ) -> Result<Vec<T>, NetlinkError> {
        let request = GenlMessage::new(self.family, command, message::VERSION, attributes);
        let answers = self
            .transport
            .dump(request)
            .map_err(|e| NetlinkError::new(call, object(), e))?;
        answers
            .iter()
            .map(|answer| parse(Attributes(&answer.attributes)))
            .collect::<Result<_, _>>()
            .map_err(|e| NetlinkError::new(call, object(), e))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn asking_for_ipvs_does_not_load_it() {
        let loaded = Path::new("/proc/net/ip_vs").exists();
        match IpvsSocket::open() {
            Ok(_) => assert!(loaded),
            Err(NetlinkError::FamilyAbsent) => assert!(!loaded),
            Err(other) => panic!("{other}"),
        }
        assert_eq!(Path::new("/proc/net/ip_vs").exists(), loaded);
    }
}
