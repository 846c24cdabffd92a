//! The names of services, in files, in messages, and as people write them.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// The full name of a service: `name` if it is from a file, else `namespace/name:port`, where the
/// port is a name and not a number. A clone only increments a reference count.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ServiceName(Arc<Parts>);

#[derive(PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
struct Parts {
    namespace: String,
    name: String,
    port: String,
}

impl ServiceName {
    /// The name of a service from a file, which has neither a namespace nor a port's name.
    pub fn of_file(name: &str) -> Self {
        Self::new("", name, "")
    }

    pub fn new(namespace: &str, name: &str, port: &str) -> Self {
        Self(Arc::new(Parts { namespace: namespace.to_owned(), name: name.to_owned(), port: port.to_owned() }))
    }

    /// Empty for a service from a file.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The name of the port; empty for a service from a file, and for the only port of a service if
    /// it has no name.
    pub fn port(&self) -> &str {
        &self.0.port
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { namespace, name, port } = &*self.0;
        if !namespace.is_empty() {
            write!(f, "{namespace}/")?;
        }
        f.write_str(name)?;
        if port.is_empty() { Ok(()) } else { write!(f, ":{port}") }
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.to_string()
    }
}

/// Text that names no service.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no name of a service: use NAME, NAMESPACE/NAME or NAMESPACE/NAME:PORT-NAME")]
pub struct NotAServiceName(String);

impl FromStr for ServiceName {
    type Err = NotAServiceName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, rest) = text.split_once('/').unwrap_or(("", text));
        let (name, port) = rest.split_once(':').unwrap_or((rest, ""));
        let is_part = |part: &str| !part.contains(['/', ':']) && !part.chars().any(char::is_whitespace);
        let is_right = [namespace, name, port].into_iter().all(is_part)
            && !name.is_empty()
            && !text.starts_with('/')
            && !text.ends_with(':');
        if is_right { Ok(Self::new(namespace, name, port)) } else { Err(NotAServiceName(text.to_owned())) }
    }
}

impl TryFrom<String> for ServiceName {
    type Error = NotAServiceName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Selects services: by the full name, or by `namespace/name` for all ports of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceSelector(ServiceName);

impl FromStr for ServiceSelector {
    type Err = NotAServiceName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.trim().parse().map(Self)
    }
}

impl ServiceSelector {
    pub fn admits(&self, name: &ServiceName) -> bool {
        let Self(asked) = self;
        (asked.namespace(), asked.name()) == (name.namespace(), name.name())
            && (asked.port().is_empty() || asked.port() == name.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_they_are_read() {
        for (text, parts) in [
            ("web", ("", "web", "")),
            ("shop/web", ("shop", "web", "")),
            ("shop/web:http", ("shop", "web", "http")),
            ("web:http", ("", "web", "http")),
        ] {
            let name: ServiceName = text.parse().unwrap();
            assert_eq!((name.namespace(), name.name(), name.port()), parts);
            assert_eq!(name.to_string(), text);
            assert_eq!(serde_json::to_string(&name).unwrap(), format!("{text:?}"));
            assert_eq!(serde_json::from_str::<ServiceName>(&format!("{text:?}")).unwrap(), name);
        }
        for text in ["", "/", "/web", "shop/", "web:", "a/b/c", "a:b:c", "shop/web:a/b", "a b", ":http", "shop/:http"] {
            assert!(text.parse::<ServiceName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn name_without_a_port_means_all_ports_of_its_namespace_alone() {
        let names = ["web", "shop/web:http", "shop/web:https", "shop/web2:http"].map(|text| text.parse().unwrap());
        for (text, expected) in [
            ("web", vec!["web"]),
            ("shop/web", vec!["shop/web:http", "shop/web:https"]),
            (" shop/web:https ", vec!["shop/web:https"]),
            ("shop/web:ftp", vec![]),
        ] {
            let selector: ServiceSelector = text.parse().unwrap();
            let admitted = names.iter().filter(|name: &&ServiceName| selector.admits(name));
            assert_eq!(admitted.map(ToString::to_string).collect::<Vec<_>>(), expected, "{text}");
        }
    }
}
