//! Users and groups by name or number.

use std::fmt;

use crate::host::Host;

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) id: u32,
    /// Its name; its number where it has none.
    pub(super) name: String,
    /// How `limits.conf` spells it.
    pub(super) in_limits: String,
}

/// There is no such user or group.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no {kind} {name:?} in {file}; one that a directory service knows is given by number (`getent {database} {name}` \
     shows it)"
)]
pub struct NoAccount {
    kind: &'static str,
    name: String,
    file: &'static str,
    database: &'static str,
}

impl Account {
    pub(super) fn user(host: &Host, name: &str) -> Result<Self, NoAccount> {
        let find = find(host, "/etc/passwd", name);
        find.map(|found| found.spelt("")).ok_or_else(|| NoAccount {
            kind: "user",
            name: name.into(),
            file: "/etc/passwd",
            database: "passwd",
        })
    }

    pub(super) fn group(host: &Host, name: &str) -> Result<Self, NoAccount> {
        let find = find(host, "/etc/group", name);
        find.map(|found| found.spelt("@")).ok_or_else(|| NoAccount {
            kind: "group",
            name: name.into(),
            file: "/etc/group",
            database: "group",
        })
    }

    /// limits.conf(5): a name, or a range of numbers; groups after an `@`.
    fn spelt(mut self, sign: &str) -> Self {
        let numeric = self.name.parse::<u32>().is_ok();
        self.in_limits = if numeric { format!("{sign}{0}:{0}", self.id) } else { format!("{sign}{}", self.name) };
        self
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The line of `file` with this name or number. A number needs no line.
fn find(host: &Host, file: &str, name: &str) -> Option<Account> {
    let text = host.read(file).unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        // It is going to stand in files that have meaning for other characters.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.$".contains(&byte);
        let good = !name.is_empty() && !name.starts_with('-') && name.bytes().all(plain);
        good.then(|| Account { id, name: name.to_owned(), in_limits: String::new() })
    });
    match name.parse::<u32>() {
        // The last number means "leave as it is" to the kernel.
        Ok(u32::MAX) => None,
        Ok(id) => Some(lines.find(|account| account.id == id).unwrap_or_else(|| Account {
            id,
            name: id.to_string(),
            in_limits: String::new(),
        })),
        Err(_) => lines.find(|account| account.name == name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::fake::Fake;

    #[test]
    fn names_and_numbers_are_found() {
        let fake = Fake::new();
        fake.put("/etc/passwd", "root:x:0:0::/root:/bin/sh\nbroken\nann:x:1000:1000::/:/bin/sh\nann\"x:x:7:7::/:\n");
        fake.put("/etc/group", "root:x:0:\nnet:x:44:ann\n");
        let user = |name| Account::user(fake.host(), name).map(|found| (found.id, found.name, found.in_limits));
        assert_eq!(user("ann").unwrap(), (1000, "ann".into(), "ann".into()));
        assert_eq!(user("1000").unwrap(), (1000, "ann".into(), "ann".into()));
        assert_eq!(user("1001").unwrap(), (1001, "1001".into(), "1001:1001".into()));
        assert_eq!(Account::group(fake.host(), "net").unwrap().in_limits, "@net");
        assert_eq!(Account::group(fake.host(), "77").unwrap().in_limits, "@77:77");
        let error = user("bob").unwrap_err().to_string();
        assert!(error.contains("no user \"bob\" in /etc/passwd") && error.contains("getent passwd bob"), "{error}");
        for name in ["ann\"x", "", "-1", "4294967295", "\n"] {
            assert!(user(name).is_err(), "{name:?}");
        }
    }
}
