//! TLS for the sinks whose receiver is elsewhere: rustls, with ring.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// A client that trusts the certificates in the PEM file `ca`, those of the system
/// without one, and shows itself with the certificate chain and the key of `identity`.
///
/// # Errors
/// A text that names the file and what is wrong with it.
pub(super) fn client_config(
    ca: Option<&Path>,
    identity: Option<(&Path, &Path)>,
) -> Result<ClientConfig, String> {
    let roots = match ca {
        Some(file) => roots_of(file)?,
        None => roots_of_the_system()?,
    };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    match identity {
        None => Ok(config.with_no_client_auth()),
        Some((chain, key)) => {
            let certificates = certificates(chain)?;
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| {
                format!("{}: {error}; give a private key in PEM", key.display())
            })?;
            config
                .with_client_auth_cert(certificates, private)
                .map_err(|error| format!("{} and {}: {error}", chain.display(), key.display()))
        }
    }
}

/// A client that trusts nobody: for connections without TLS.
pub(super) fn no_config() -> Result<ClientConfig, String> {
    Ok(
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth(),
    )
}

fn roots_of(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(roots)
}

fn roots_of_the_system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (taken, _of_no_use) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        return Err("this system has no certificate authorities".into());
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error: &dyn std::fmt::Display| {
        format!("{}: {error}; give certificates in PEM", file.display())
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .map_err(|error| failed(&error))?
        .collect::<Result<_, _>>()
        .map_err(|error| failed(&error))?;
    if certificates.is_empty() {
        return Err(failed(&"no certificate in it"));
    }
    Ok(certificates)
}
