//! Lists and watches, and puts the tables there that come of them.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use k8s_openapi::api::{core::v1 as core, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::time::{MissedTickBehavior, interval};

use super::objects::{self, Place, Texts};
use crate::names::{
    Destination, Key, Service, Shared, Table,
    catalog::{Catalog, Id},
};

/// How often a new table is put there at most.
const PUBLISH_EVERY: Duration = Duration::from_millis(250);
/// How often is looked for what departed long ago.
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// After this time without a byte the API server is taken for dead. Longer than a watch
/// lasts: the server ends one after 290 s.
pub(super) const SILENCE: Duration = Duration::from_secs(300);
/// Objects that one answer has at most: an endpoint slice may have 40 kB.
const PAGE: u32 = 50;
/// Addresses of services by port that have a name at most.
pub(super) const SERVICES: usize = 16_384;
/// Addresses of endpoints by port that have a name at most.
pub(super) const ENDPOINTS: usize = 32_768;

/// Runs until the process ends.
pub(super) async fn run(client: Client, shared: Shared) {
    let config = || watcher::Config::default().page_size(PAGE);
    let services = watcher(Api::<core::Service>::all(client.clone()), config()).default_backoff();
    let slices = watcher(Api::<EndpointSlice>::all(client), config()).default_backoff();
    let (mut services, mut slices) = (pin!(services), pin!(slices));
    let mut publish = interval(PUBLISH_EVERY);
    let mut forget = interval(FORGET_EVERY);
    publish.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut cluster = Cluster::new();
    loop {
        tokio::select! {
            Some(event) = services.next() => cluster.service(event),
            Some(event) = slices.next() => cluster.slice(event),
            _ = publish.tick() => cluster.publish(&shared),
            _ = forget.tick() => cluster.forget(),
        }
    }
}

struct Cluster {
    services: Catalog<Place, Arc<Service>>,
    slices: Catalog<Key, Arc<Destination>>,
    texts: Texts,
    /// Something changed since the last table.
    fresh: bool,
    /// Of services and of slices.
    away: [Away; 2],
    full: bool,
}

impl Cluster {
    fn new() -> Self {
        Self {
            services: Catalog::new(SERVICES),
            slices: Catalog::new(ENDPOINTS),
            texts: Texts::default(),
            fresh: false,
            away: [Away::new("services"), Away::new("endpoint slices")],
            full: false,
        }
    }

    fn service(&mut self, event: watcher::Result<Event<core::Service>>) {
        let texts = &mut self.texts;
        self.fresh |= take(&mut self.services, &mut self.away[0], event, |service| {
            objects::of_service(service, texts)
        });
    }

    fn slice(&mut self, event: watcher::Result<Event<EndpointSlice>>) {
        let texts = &mut self.texts;
        self.fresh |= take(&mut self.slices, &mut self.away[1], event, |slice| {
            objects::of_slice(slice, texts)
        });
    }

    fn forget(&mut self) {
        let now = Instant::now();
        self.fresh |= self.services.forget(now) | self.slices.forget(now);
        self.texts.tidy();
    }

    fn publish(&mut self, shared: &Shared) {
        let left_out = self.services.left_out() + self.slices.left_out();
        if left_out > 0 && !self.full {
            self.full = true;
            log::warn!(
                "--kube: the cluster has more than {SERVICES} addresses of services or \
                 {ENDPOINTS} of endpoints by port; those beyond stay without names"
            );
        }
        if !std::mem::take(&mut self.fresh) {
            return;
        }
        let mut table = Table::default();
        let services = self.services.departed().chain(self.services.present());
        for (place, service) in services {
            match *place {
                Place::Address(key) => table.name_service(key, Arc::clone(service)),
                Place::NodePort(port, transport) => {
                    table.name_node_port(port, transport, Arc::clone(service));
                }
            }
        }
        for (key, destination) in self.slices.present() {
            table.share_destination(*key, destination);
        }
        // The latest that had an address, where none has it now.
        let departed: Vec<_> = self.slices.departed().collect();
        for (key, destination) in departed.into_iter().rev() {
            table.name_departed(*key, destination);
        }
        shared.store(Arc::new(table));
    }
}

/// One event of a watch; whether it changes names.
fn take<K: kube::Resource, P: Clone + PartialEq, N: Clone + PartialEq>(
    catalog: &mut Catalog<P, N>,
    away: &mut Away,
    event: watcher::Result<Event<K>>,
    names: impl FnOnce(&K) -> Vec<(P, N)>,
) -> bool {
    let now = Instant::now();
    match event {
        Err(error) => {
            away.complain(error);
            false
        }
        Ok(Event::Init) => {
            catalog.begin();
            false
        }
        Ok(Event::InitDone) => {
            away.is_back();
            catalog.end(now)
        }
        Ok(Event::Apply(object) | Event::InitApply(object)) => {
            away.is_back();
            let id: Option<Id> = objects::id(&object);
            id.is_some_and(|id| catalog.put(id, names(&object), now))
        }
        Ok(Event::Delete(object)) => {
            away.is_back();
            objects::id(&object).is_some_and(|id| catalog.remove(&id, now))
        }
    }
}

/// Says once that a watch fails, and once that it works again.
struct Away {
    what: &'static str,
    said: bool,
}

impl Away {
    const fn new(what: &'static str) -> Self {
        Self { what, said: false }
    }

    fn complain(&mut self, error: watcher::Error) {
        // A watch that ended or is too old: it begins anew, as it does all the time.
        let ordinary = matches!(&error, watcher::Error::WatchError(status) if status.code == 410);
        if ordinary {
            log::debug!("--kube: {}: {}", self.what, super::super::chain(error));
        } else if !self.said {
            self.said = true;
            log::warn!(
                "--kube: {}: {}; names that are known stay, and it is tried again",
                self.what,
                super::super::chain(error)
            );
        }
    }

    fn is_back(&mut self) {
        if std::mem::take(&mut self.said) {
            log::warn!("--kube: {}: names come again", self.what);
        }
    }
}
