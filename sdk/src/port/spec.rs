//! Port specs: one string opens any port.

use std::fmt;
use std::str::FromStr;

/// A parsed port spec: `KIND:ADDRESS[,key=value]...`, as in `pci:0000:01:00.0,queues=4` or `soft:,rate=0`.
///
/// Kinds and keys are known to the drivers, not here; a driver says which keys it knows with
/// [`only_keys`](Self::only_keys) and reads each with [`key`](Self::key).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    kind: String,
    address: String,
    keys: Vec<(String, String)>,
}

/// A port spec was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No kind.
    #[error("port spec \"{spec}\" has no kind; write KIND:ADDRESS[,key=value]..., as in pci:0000:01:00.0 or soft:")]
    NoKind {
        /// The spec.
        spec: String,
    },
    /// A kind that nobody knows.
    #[error("port spec \"{spec}\": there is no kind \"{kind}\"; the kinds are {known}")]
    Kind {
        /// The spec.
        spec: String,
        /// What stands before the colon.
        kind: String,
        /// All kinds.
        known: String,
    },
    /// No or a bad address.
    #[error("port spec \"{spec}\": {why}")]
    Address {
        /// The spec.
        spec: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something between commas that is no `key=value`.
    #[error("port spec \"{spec}\": \"{part}\" is no key=value; write it like queues=4")]
    NoValue {
        /// The spec.
        spec: String,
        /// The part.
        part: String,
    },
    /// A key given twice.
    #[error("port spec \"{spec}\": {key} is given twice; give it once")]
    Twice {
        /// The spec.
        spec: String,
        /// The key.
        key: String,
    },
    /// A key that this kind of port does not have.
    #[error("port spec \"{spec}\": there is no key \"{key}\"; the keys of {kind}: are {known}")]
    Key {
        /// The spec.
        spec: String,
        /// The kind.
        kind: String,
        /// The key.
        key: String,
        /// All keys of the kind.
        known: String,
    },
    /// A value that means nothing.
    #[error("port spec \"{spec}\": {key}={value} is not possible; {key} takes {possible}")]
    Value {
        /// The spec.
        spec: String,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is possible.
        possible: String,
    },
}

impl PortSpec {
    /// What kind of port: `pci`, `soft`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Which one; empty where the kind needs none.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The same spec without these keys: for a device that knows nothing of what its driver is asked.
    #[must_use]
    pub fn without(&self, keys: &[&str]) -> Self {
        let mut spec = self.clone();
        spec.keys.retain(|(key, _)| !keys.contains(&key.as_str()));
        spec
    }

    /// Refuses every key that is not in `known`.
    ///
    /// # Errors
    ///
    /// [`SpecError::Key`], with the keys that exist.
    pub fn only_keys(&self, known: &[&str]) -> Result<(), SpecError> {
        match self.keys.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, _)) => Err(SpecError::Key {
                spec: self.to_string(),
                kind: self.kind.clone(),
                key: key.clone(),
                known: known.join(", "),
            }),
        }
    }

    /// The text of `key`, if it is given.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.keys.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// The value of `key`, if it is given. `possible` says in words what it takes.
    ///
    /// # Errors
    ///
    /// [`SpecError::Value`] when the text does not parse.
    pub fn key<T: FromStr>(&self, key: &str, possible: &str) -> Result<Option<T>, SpecError> {
        self.text(key).map(|text| text.parse().map_err(|_| self.bad_value(key, possible))).transpose()
    }

    /// Whether `key` is on or off, if it is given.
    ///
    /// # Errors
    ///
    /// [`SpecError::Value`] when it says anything else.
    pub fn switch(&self, key: &str) -> Result<Option<bool>, SpecError> {
        match self.text(key) {
            None => Ok(None),
            Some("on") => Ok(Some(true)),
            Some("off") => Ok(Some(false)),
            Some(_) => Err(self.bad_value(key, "on or off")),
        }
    }

    /// The error for a value of `key` that is not possible.
    pub fn bad_value(&self, key: &str, possible: &str) -> SpecError {
        SpecError::Value {
            spec: self.to_string(),
            key: key.into(),
            value: self.text(key).unwrap_or_default().into(),
            possible: possible.into(),
        }
    }

    /// The error for an address that is not possible.
    pub fn bad_address(&self, why: impl fmt::Display) -> SpecError {
        SpecError::Address { spec: self.to_string(), why: why.to_string() }
    }
}

impl FromStr for PortSpec {
    type Err = SpecError;

    fn from_str(spec: &str) -> Result<Self, SpecError> {
        let spec = spec.trim();
        let mut parts = spec.split(',');
        // `split` yields at least one part.
        let head = parts.next().unwrap_or_default();
        let (kind, address) = match head.split_once(':') {
            Some((kind, address)) if !kind.is_empty() && !kind.contains('=') => (kind, address),
            _ => return Err(SpecError::NoKind { spec: spec.into() }),
        };
        let mut keys: Vec<(String, String)> = Vec::new();
        for part in parts {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) if !key.is_empty() && !value.is_empty() => (key, value),
                _ => return Err(SpecError::NoValue { spec: spec.into(), part: part.into() }),
            };
            if keys.iter().any(|(k, _)| k == key) {
                return Err(SpecError::Twice { spec: spec.into(), key: key.into() });
            }
            keys.push((key.into(), value.into()));
        }
        Ok(Self { kind: kind.into(), address: address.into(), keys })
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.address)?;
        self.keys.iter().try_for_each(|(key, value)| write!(f, ",{key}={value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_reads_kind_address_and_keys() {
        let spec: PortSpec = "pci:0000:01:00.0,queues=4,irq=msi".parse().unwrap();
        assert_eq!((spec.kind(), spec.address()), ("pci", "0000:01:00.0"));
        assert_eq!(spec.key::<u16>("queues", "a number").unwrap(), Some(4));
        assert_eq!(spec.text("irq"), Some("msi"));
        assert_eq!(spec.to_string(), "pci:0000:01:00.0,queues=4,irq=msi");
    }

    #[test]
    fn a_key_that_does_not_exist_is_named_with_those_that_do() {
        let spec: PortSpec = "soft:,quues=4".parse().unwrap();
        let error = spec.only_keys(&["queues", "rate"]).unwrap_err().to_string();
        assert!(error.contains("\"quues\"") && error.contains("queues, rate"), "{error}");
    }

    #[test]
    fn an_impossible_value_is_named_with_what_is_possible() {
        let spec: PortSpec = "soft:,queues=many".parse().unwrap();
        let error = spec.key::<u16>("queues", "1 to 16").unwrap_err().to_string();
        assert!(error.contains("queues=many") && error.contains("1 to 16"), "{error}");
    }

    #[test]
    fn a_switch_is_on_or_off_or_refused() {
        let spec: PortSpec = "vhost:/a,packed=on,server=off,mrg=1".parse().unwrap();
        assert_eq!(["packed", "server", "mac"].map(|key| spec.switch(key).unwrap()), [Some(true), Some(false), None]);
        let error = spec.switch("mrg").unwrap_err().to_string();
        assert!(error.contains("mrg=1") && error.contains("on or off"), "{error}");
    }

    #[test]
    fn malformed_specs_are_refused() {
        for spec in ["", "pci", "=x:y", ":x", "soft:,queues", "soft:,queues=", "soft:,=4", "soft:,a=1,a=2", "soft:,"] {
            assert!(spec.parse::<PortSpec>().is_err(), "{spec}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_parses_prints_the_same(spec in "\\PC*") {
            if let Ok(parsed) = spec.parse::<PortSpec>() {
                prop_assert_eq!(parsed.to_string(), spec.trim());
            }
        }
    }
}
