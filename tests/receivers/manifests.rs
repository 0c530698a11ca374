//! The manifests, read as the types of the Kubernetes API, whose fields are all they may
//! have.

use std::fs;

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Container, Namespace, Service, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::chroot::workspace;

/// The documents of a YAML file.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

/// `value` as a type of the API, and that nothing of it is lost by that: a field that the
/// type does not have would be.
pub(crate) fn read<T: DeserializeOwned + Serialize>(value: &Value) -> T {
    let read: T = serde_json::from_value(value.clone()).unwrap();
    let written = serde_json::to_value(&read).unwrap();
    if let Some(path) = lost(value, &written) {
        panic!("{}: no field {path}", value["kind"]);
    }
    read
}

fn lost(value: &Value, written: &Value) -> Option<String> {
    match value {
        Value::Object(fields) => fields.iter().find_map(|(key, value)| {
            let inner = match written.get(key) {
                None => String::new(),
                Some(written) => lost(value, written)?,
            };
            Some(format!(".{key}{inner}"))
        }),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(i, item)| Some(format!("[{i}]{}", lost(item, written.get(i)?)?))),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// What holds for every way to deploy it, by documents of all kinds.
pub(crate) fn check(documents: &[Value]) {
    let of = |kind: &str| -> Vec<&Value> {
        documents.iter().filter(|doc| doc["kind"] == kind).collect()
    };
    for document in documents {
        match document["kind"].as_str().unwrap() {
            "Namespace" => drop(read::<Namespace>(document)),
            "ServiceAccount" => drop(read::<ServiceAccount>(document)),
            "ConfigMap" => drop(read::<ConfigMap>(document)),
            "Service" => drop(read::<Service>(document)),
            "ClusterRole" => role(&read(document)),
            "ClusterRoleBinding" => drop(read::<ClusterRoleBinding>(document)),
            "DaemonSet" => daemon_set(&read(document)),
            "PodMonitor" => {}
            other => panic!("{other} is not expected"),
        }
    }
    let daemon_sets = of("DaemonSet");
    assert_eq!(daemon_sets.len(), 1);
    let account = &daemon_sets[0]["spec"]["template"]["spec"]["serviceAccountName"];
    if let Some(made) = of("ServiceAccount").first() {
        assert_eq!(account, &made["metadata"]["name"]);
        assert_eq!(
            made["metadata"]["namespace"],
            daemon_sets[0]["metadata"]["namespace"]
        );
    }
    if let Some(binding) = of("ClusterRoleBinding").first() {
        assert_eq!(&binding["subjects"][0]["name"], account);
        let role = of("ClusterRole")[0];
        assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    }
    for map in of("ConfigMap") {
        let file = map["data"]["ipvs-guard.toml"].as_str().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ipvs-guard.toml");
        fs::write(&path, file).unwrap();
        let faults = ipvs_guard::cli::check_config(&path);
        assert_eq!(faults, [] as [String; 0]);
    }
}

/// Reading what names come from, and nothing else.
fn role(role: &ClusterRole) {
    for rule in role.rules.iter().flatten() {
        for verb in &rule.verbs {
            assert!(["list", "watch"].contains(&verb.as_str()), "{verb}");
        }
        for resource in rule.resources.iter().flatten() {
            assert!(
                ["services", "endpointslices"].contains(&resource.as_str()),
                "{resource}"
            );
        }
    }
}

fn daemon_set(set: &DaemonSet) {
    let spec = set.spec.as_ref().unwrap();
    let labels = spec
        .template
        .metadata
        .as_ref()
        .unwrap()
        .labels
        .as_ref()
        .unwrap();
    for (key, value) in spec.selector.match_labels.as_ref().unwrap() {
        assert_eq!(labels.get(key), Some(value));
    }
    let pod = spec.template.spec.as_ref().unwrap();
    assert_eq!(pod.host_network, Some(true));
    assert!(!pod.host_pid.unwrap_or(false) && !pod.host_ipc.unwrap_or(false));
    let [container] = pod.containers.as_slice() else {
        panic!("one container is expected");
    };
    secured(container);
    let resources = container.resources.as_ref().unwrap();
    assert!(resources.limits.as_ref().unwrap().contains_key("memory"));
    let mounts = container.volume_mounts.iter().flatten();
    for mount in mounts {
        let volume = pod
            .volumes
            .iter()
            .flatten()
            .find(|volume| volume.name == mount.name);
        assert!(volume.unwrap().host_path.is_none(), "{}", mount.name);
    }
    for (probe, path) in [
        (&container.liveness_probe, "/healthz"),
        (&container.readiness_probe, "/readyz"),
    ] {
        let get = probe.as_ref().unwrap().http_get.as_ref().unwrap();
        assert_eq!(get.path.as_deref(), Some(path));
    }
}

fn secured(container: &Container) {
    let context = container.security_context.as_ref().unwrap();
    assert!(!context.privileged.unwrap_or(false));
    assert_eq!(context.read_only_root_filesystem, Some(true));
    let capabilities = context.capabilities.as_ref().unwrap();
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
    let mut added: Vec<&str> = capabilities
        .add
        .iter()
        .flatten()
        .map(String::as_str)
        .collect();
    added.sort_unstable();
    // Those of the unit, which a test of its own holds against what the agent uses.
    let unit = fs::read_to_string(workspace("deploy/systemd/ipvs-guard.service")).unwrap();
    let granted = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .unwrap();
    let granted: Vec<&str> = granted
        .split_whitespace()
        .map(|name| name.trim_start_matches("CAP_"))
        .collect();
    assert_eq!(added, granted);
}

#[test]
fn the_plain_manifests_are_what_the_api_takes() {
    let text = fs::read_to_string(workspace("deploy/kubernetes/ipvs-guard.yaml")).unwrap();
    let documents = documents(&text);
    assert_eq!(documents.len(), 6);
    check(&documents);
}

#[test]
fn a_field_that_the_api_does_not_have_is_found() {
    let wrong = serde_json::json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a", "namspace": "b"},
    });
    let written =
        serde_json::to_value(serde_json::from_value::<ServiceAccount>(wrong.clone()).unwrap())
            .unwrap();
    assert_eq!(
        lost(&wrong, &written).as_deref(),
        Some(".metadata.namspace")
    );
}
