//! `--kube`: names from the Kubernetes API server.

mod objects;
#[cfg(test)]
mod tests;
mod watch;

use std::{sync::Arc, thread};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::sync::oneshot;

use super::Shared;

/// Why names cannot be had from Kubernetes. That the API server is away is no such
/// reason: it is tried until it is there.
#[derive(Debug, Error)]
pub enum KubeError {
    /// Neither a pod's service account nor a kubeconfig file.
    #[error(
        "--kube: {0}; run in a pod with a service account, or set KUBECONFIG to a kubeconfig file"
    )]
    Config(String),
    /// What the configuration says cannot be used.
    #[error("--kube: {0}; correct the kubeconfig file or the service account's files")]
    Client(String),
    /// No thread.
    #[error("--kube: starting a thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// Keeps a table of the cluster's services and endpoints from now on, on a thread of its
/// own: by the kubeconfig file of KUBECONFIG or of the home folder, else by the service
/// account of the pod.
///
/// # Errors
/// [`KubeError`] when there is no usable configuration.
pub fn watch() -> Result<Shared, KubeError> {
    let runtime = runtime()?;
    let config = runtime
        .block_on(kube::Config::infer())
        .map_err(|error| KubeError::Config(super::chain(error)))?;
    watch_by(runtime, config)
}

fn runtime() -> Result<tokio::runtime::Runtime, KubeError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(KubeError::Thread)
}

fn watch_by(
    runtime: tokio::runtime::Runtime,
    mut config: kube::Config,
) -> Result<Shared, KubeError> {
    config.read_timeout = Some(watch::SILENCE);
    let shared = Shared::new(ArcSwap::default());
    let table = Arc::clone(&shared);
    let (told, outcome) = oneshot::channel();
    thread::Builder::new()
        .name("names.kube".into())
        .spawn(move || {
            crate::privilege::confine_sink();
            runtime.block_on(async move {
                match kube::Client::try_from(config) {
                    Ok(client) => {
                        if told.send(Ok(())).is_ok() {
                            watch::run(client, table).await;
                        }
                    }
                    // Nobody waits any more where it cannot be sent.
                    Err(error) => drop(told.send(Err(super::chain(error)))),
                }
            });
        })
        .map_err(KubeError::Thread)?;
    match outcome.blocking_recv() {
        Ok(Ok(())) => Ok(shared),
        Ok(Err(reason)) => Err(KubeError::Client(reason)),
        Err(_) => Err(KubeError::Client("the client ended".into())),
    }
}
