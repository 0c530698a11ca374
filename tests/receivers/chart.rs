//! The chart, linted and rendered by Helm.

use std::process::{Command, Output};

use crate::{
    chroot::{given, workspace},
    manifests::{check, documents},
};

fn helm(arguments: &[&str]) -> Output {
    Command::new(given("IPVS_GUARD_HELM"))
        .args(arguments)
        .env("HELM_NO_PLUGINS", "1")
        .output()
        .unwrap()
}

fn chart() -> String {
    workspace("deploy/helm/ipvs-guard").display().to_string()
}

fn rendered(set: &[&str]) -> String {
    let chart = chart();
    let mut arguments = vec!["template", "guard", &chart, "--namespace", "guarded"];
    for value in set {
        arguments.extend(["--set", value]);
    }
    let output = helm(&arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_chart_lints() {
    let output = helm(&["lint", "--strict", &chart()]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("0 chart(s) failed"), "{said}");
}

#[test]
fn what_it_renders_is_what_the_api_takes() {
    let plain = documents(&rendered(&[]));
    check(&plain);
    assert!(
        !plain
            .iter()
            .any(|document| document["kind"] == "PodMonitor")
    );
    let other = documents(&rendered(&[
        "command=enforce",
        "kube=false",
        "podMonitor.enabled=true",
        "serviceAccount.create=false",
        "serviceAccount.name=own",
    ]));
    check(&other);
    assert!(
        other
            .iter()
            .any(|document| document["kind"] == "PodMonitor")
    );
    // Without names it asks the API server nothing.
    assert!(
        !other
            .iter()
            .any(|document| document["kind"] == "ClusterRole")
    );
    let set = other
        .iter()
        .find(|document| document["kind"] == "DaemonSet")
        .unwrap();
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["args"][0], "enforce");
    assert_eq!(pod["serviceAccountName"], "own");
    assert_eq!(pod["automountServiceAccountToken"], false);
}

#[test]
fn a_command_that_the_agent_does_not_have_is_refused() {
    let output = helm(&["template", "guard", &chart(), "--set", "command=wotch"]);
    assert!(!output.status.success());
}
