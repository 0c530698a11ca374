//! Names for the addresses in events: of Kubernetes services, pods and nodes, from the
//! API server (`--kube`) or from a file (`--names`).

mod catalog;
mod file;
mod kube;
mod table;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use ipvs_guard_common::state::Forwarding;

pub use self::{
    file::FileError,
    kube::{KubeError, watch},
    table::{Destination, Key, Service, Table},
};
use crate::event::{Event, Transport};

/// What is read for an event, while others put newer tables there.
pub type Shared = Arc<ArcSwap<Table>>;

/// Everything that gives names; a clone is another handle of the same.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// The first that knows an address names it.
    tables: Vec<Shared>,
    file: Option<(PathBuf, Shared)>,
    /// The Kubernetes node that the agent runs on.
    node: Option<Arc<str>>,
}

impl Names {
    /// Adds the names of the file at `path`, which win over those of others.
    ///
    /// # Errors
    /// [`FileError`], with the line where there is one.
    pub fn read(&mut self, path: &Path) -> Result<(), FileError> {
        let shared = Shared::new(ArcSwap::from_pointee(file::read(path)?));
        self.tables.insert(0, Arc::clone(&shared));
        self.file = Some((path.to_owned(), shared));
        Ok(())
    }

    /// Adds the names in a table that somebody keeps.
    pub fn add(&mut self, table: Shared) {
        self.tables.push(table);
    }

    /// Says on which Kubernetes node the agent runs.
    pub fn set_node(&mut self, node: &str) {
        self.node = Some(node.into());
    }

    /// Whether there is a file that can be read once more.
    pub const fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Reads the file once more; one that is wrong now leaves the names as they are.
    pub fn reload(&self) {
        let Some((path, shared)) = &self.file else {
            return;
        };
        match file::read(path) {
            Ok(table) => shared.store(Arc::new(table)),
            Err(error) => log::error!("{error}; the names stay as they were"),
        }
    }

    /// Puts into `event` the names of its service and its destination.
    pub fn tell(&self, event: &mut Event) {
        let transport = event.transport.map_or(0, Transport::number);
        for table in &self.tables {
            table.load().tell(event, transport);
        }
        let here = event.forwarding == Some(Forwarding::Local);
        if event.node.is_none() && here && event.pod.is_some() {
            event.node.clone_from(&self.node);
        }
    }
}

/// An error and its causes in one line.
fn chain(error: impl std::error::Error + Send + Sync + 'static) -> String {
    crate::failure::Failure::Internal(anyhow::Error::new(error)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Class;

    fn event(service: &str, real: &str) -> Event {
        let time = "2026-11-21T00:00:00Z".parse().unwrap();
        let mut event = Event::new(Class::StaleReuse, time, "h".into());
        let (service, real): (std::net::SocketAddr, std::net::SocketAddr) =
            (service.parse().unwrap(), real.parse().unwrap());
        event.service_address = Some(service.ip());
        event.service_port = Some(service.port());
        event.real_address = Some(real.ip());
        event.real_port = Some(real.port());
        event.transport = Some(Transport::Tcp);
        event
    }

    #[test]
    fn the_file_wins_is_read_anew_and_survives_being_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names.toml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("[[service]]\naddress = '10.0.0.1:80'\nname = 'web'\n");
        let mut other = Table::default();
        let key = Key::new("10.0.0.1".parse().unwrap(), 80, 6);
        other.name_service(key, Service::new("other", Some("space")));
        let mut names = Names::default();
        names.add(Shared::new(ArcSwap::from_pointee(other)));
        names.read(&path).unwrap();
        let told = || {
            let mut event = event("10.0.0.1:80", "10.1.0.1:8080");
            names.tell(&mut event);
            (event.service, event.namespace)
        };
        // A name is taken whole: no service of one and namespace of another.
        assert_eq!(told(), (Some("web".into()), None));
        write("[[service]]\naddress = '10.0.0.1:80'\nname = 'shop'\n");
        names.reload();
        assert_eq!(told().0, Some("shop".into()));
        write("[[service]]\n");
        names.reload();
        assert_eq!(told().0, Some("shop".into()));
    }

    #[test]
    fn a_destination_on_this_node_is_on_this_node() {
        let mut table = Table::default();
        let key = Key::new("10.1.0.1".parse().unwrap(), 0, 0);
        table.name_destination(key, Destination::new(Some("pod"), None, None, None));
        let mut names = Names::default();
        names.set_node("here");
        names.add(Shared::new(ArcSwap::from_pointee(table)));
        let mut event = event("10.0.0.1:80", "10.1.0.1:8080");
        names.tell(&mut event);
        assert_eq!(event.node, None);
        event.forwarding = Some(Forwarding::Local);
        names.tell(&mut event);
        assert_eq!(event.node, Some("here".into()));
    }
}
