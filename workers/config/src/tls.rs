//! Certificates of both sides of a connection between workers.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A server that shows a certificate and asks every caller for one. Files are PEM, and read again when they are renewed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerTls {
    /// Its certificate, followed by those between it and the authority.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// Authorities that callers' certificates must come from.
    pub client_ca: PathBuf,
}

/// What a caller shows to such a server. Files are PEM, and read again when they are renewed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientTls {
    /// Its certificate, followed by those between it and the authority.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// Authorities that the server's certificate must come from.
    pub ca: PathBuf,
    /// Name that the server's certificate must be for; none takes the host of its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}
