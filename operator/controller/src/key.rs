//! What is reconciled, one at a time per key.

use s3_crds::Kind;
use std::fmt;
use std::time::Duration;

/// One unit of work.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// One resource.
    Resource {
        /// Its kind.
        kind: Kind,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The gateways that the resources of a namespace share.
    Gateways {
        /// The namespace.
        namespace: String,
    },
}

impl Key {
    /// A resource's key.
    pub fn resource(kind: Kind, namespace: &str, name: &str) -> Self {
        Self::Resource { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// A namespace's gateways.
    pub fn gateways(namespace: &str) -> Self {
        Self::Gateways { namespace: namespace.to_owned() }
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        match self {
            Self::Resource { namespace, .. } | Self::Gateways { namespace } => namespace,
        }
    }

    /// How long an event of something that belongs to it waits for more of them.
    ///
    /// A child's news comes in bursts, and what many share is looked at once for all that came together. What a person
    /// does to a resource itself is looked at right away.
    pub fn gathers(&self) -> Duration {
        match self {
            Self::Resource { .. } => Duration::from_millis(100),
            Self::Gateways { .. } => Duration::from_millis(200),
        }
    }

    /// The kind as a label of metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Resource { kind, .. } => kind.name(),
            Self::Gateways { .. } => "Gateways",
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource { kind, namespace, name } => write!(f, "{}/{namespace}/{name}", kind.name()),
            Self::Gateways { namespace } => write!(f, "Gateways/{namespace}"),
        }
    }
}
