//! Names for what only a runtime knows: where a volume lies, which port a component got, where a key is.
//!
//! A plan is the same on a laptop and in a cluster because it holds these symbols instead of values.
//! They are written as URIs, so that they fit into the text fields of the workers' configurations:
//!
//! | symbol | meaning |
//! |---|---|
//! | `volume://NAME/PATH` | a file of a volume that the resources name |
//! | `work://COMPONENT/PATH` | a file in the folder of a component of this plan |
//! | `address://COMPONENT/PORT` | where another component's port answers; a path may follow |
//! | `listen://PORT` | the address a component's own port is bound to |
//! | `secret://NAME/KEY` | a file that holds the value of a secret's key |

use std::fmt;

/// One unbound value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Symbol {
    /// A path inside a volume that the resources name.
    Volume {
        /// The volume (the claim's name in `pvc://NAME/PATH`).
        name: String,
        /// Path inside it; empty is its root.
        path: String,
    },
    /// A path inside the folder of a component.
    Work {
        /// The component.
        component: String,
        /// Path inside it; empty is its root.
        path: String,
    },
    /// Another component's port, as `http://host:port`.
    Address {
        /// The component.
        component: String,
        /// The port's name.
        port: String,
    },
    /// The component's own port, as `ip:port`.
    Listen {
        /// The port's name.
        port: String,
    },
    /// A file with the value of a secret's key.
    Secret {
        /// The secret.
        name: String,
        /// Its key.
        key: String,
    },
}

impl Symbol {
    /// Reads a symbol; anything else is a plain value and gives none.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let (head, tail) = rest.split_once('/').unwrap_or((rest, ""));
        let (head, tail) = (head.to_owned(), tail.to_owned());
        match scheme {
            "volume" => Some(Self::Volume { name: head, path: tail }),
            "work" => Some(Self::Work { component: head, path: tail }),
            "address" => Some(Self::Address { component: head, port: tail }),
            "listen" => Some(Self::Listen { port: head }),
            "secret" => Some(Self::Secret { name: head, key: tail }),
            _ => None,
        }
    }

    /// A path in a component's folder.
    pub fn work(component: &str, path: &str) -> Self {
        Self::Work { component: component.to_owned(), path: path.to_owned() }
    }

    /// Another component's port.
    pub fn address(component: &str, port: &str) -> Self {
        Self::Address { component: component.to_owned(), port: port.to_owned() }
    }

    /// The component's own port.
    pub fn listen(port: &str) -> Self {
        Self::Listen { port: port.to_owned() }
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, head, tail) = match self {
            Self::Volume { name, path } => ("volume", name, path.as_str()),
            Self::Work { component, path } => ("work", component, path.as_str()),
            Self::Address { component, port } => ("address", component, port.as_str()),
            Self::Listen { port } => ("listen", port, ""),
            Self::Secret { name, key } => ("secret", name, key.as_str()),
        };
        write!(f, "{scheme}://{head}")?;
        if tail.is_empty() { Ok(()) } else { write!(f, "/{tail}") }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(head in "[a-z0-9-]{1,12}", tail in "([a-z0-9._-]{1,8}(/[a-z0-9._-]{1,8}){0,2})?") {
            for symbol in [
                Symbol::Volume { name: head.clone(), path: tail.clone() },
                Symbol::Work { component: head.clone(), path: tail.clone() },
                Symbol::Address { component: head.clone(), port: tail.clone() },
                Symbol::Listen { port: head.clone() },
                Symbol::Secret { name: head.clone(), key: tail.clone() },
            ] {
                prop_assert_eq!(Symbol::parse(&symbol.to_string()), Some(symbol));
            }
        }
    }

    #[test]
    fn plain_values_are_no_symbols() {
        for text in ["/data/corpus.jsonl", "http://127.0.0.1:9", "s3", "hf://org/model", ""] {
            assert_eq!(Symbol::parse(text), None, "{text}");
        }
    }
}
