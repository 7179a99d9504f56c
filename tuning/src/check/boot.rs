//! What the kernel was booted with.

use spinwake::cpu::CpuSet;

use super::seen::{self, Unseen};
use crate::host::Host;

const CMDLINE: &str = "/proc/cmdline";

/// The words of the kernel's command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BootWords {
    words: Vec<String>,
}

impl BootWords {
    pub(super) fn read(host: &Host) -> Result<Self, Unseen> {
        let text = seen::text(host, CMDLINE)?;
        // The kernel takes printable text alone; what else stands there is no command line.
        if text.chars().any(|c| c == char::REPLACEMENT_CHARACTER || (c.is_control() && !c.is_whitespace())) {
            return Err(Unseen::malformed(CMDLINE, &text));
        }
        // What follows `--` is for the first process.
        Ok(Self { words: split(&text).into_iter().take_while(|word| word != "--").collect() })
    }

    /// The value of a parameter, the last one where it is given several times; empty for one without a value.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.words.iter().rev().find_map(|word| match word.split_once('=') {
            Some((key, value)) => same(key, name).then_some(value),
            None => same(word, name).then_some(""),
        })
    }

    /// The cores of a parameter that lists them, perhaps after flags; `all` and `-N` end with the last of `online`.
    ///
    /// # Errors
    ///
    /// When the list is not understood: what the kernel made of it is not known.
    pub(super) fn cores(&self, name: &str, online: &CpuSet) -> Result<Option<CpuSet>, Unseen> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let last = online.iter().last().unwrap_or(0);
        // isolcpus=managed_irq,domain,1-3: flags are words, cores are digits (lib/bitmap.c: or `all`, or up to `N`).
        let is_flag =
            |part: &&str| name == "isolcpus" && part.starts_with(|c: char| c.is_ascii_lowercase()) && *part != "all";
        let parts = value.split(',').filter(|part| !is_flag(part)).map(|part| match part.strip_suffix("-N") {
            Some(first) => format!("{first}-{last}"),
            None if part == "all" => format!("0-{last}"),
            None => part.to_owned(),
        });
        let list = parts.collect::<Vec<_>>().join(",");
        list.parse().map(Some).map_err(|_| Unseen::malformed(CMDLINE, &format!("{name}={value}")))
    }

    /// Whether a parameter's list has this word, as `isolcpus=managed_irq,1` has `managed_irq`.
    pub(super) fn has_flag(&self, name: &str, flag: &str) -> bool {
        self.value(name).is_some_and(|value| value.split(',').any(|part| part == flag))
    }
}

/// Dashes and underscores are one to the kernel (kernel/params.c, `parameq`).
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).all(|(a, b)| a == b || (b"-_".contains(&a) && b"-_".contains(&b)))
}

/// Words stand apart by white space that is not in double quotes.
fn split(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => words.push(String::new()),
            c => words.last_mut().into_iter().for_each(|word| word.push(c)),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> BootWords {
        BootWords { words: split(text) }
    }

    #[test]
    fn parameters_are_found() {
        let boot = words("quiet isolcpus=managed_irq,domain,1-2,5 rcu-nocbs=3 dyndbg=\"a b=c\" x=1 x=2");
        let online = "0-7".parse().unwrap();
        let cores = |boot: &BootWords, name: &str| boot.cores(name, &online).map(|set| set.map(|set| set.to_string()));
        assert_eq!(cores(&boot, "isolcpus"), Ok(Some("1-2,5".into())));
        assert!(boot.has_flag("isolcpus", "managed_irq") && !boot.has_flag("isolcpus", "nohz"));
        assert_eq!(boot.value("rcu_nocbs"), Some("3"));
        assert_eq!((boot.value("x"), boot.value("quiet"), boot.value("b")), (Some("2"), Some(""), None));
        assert_eq!(boot.value("dyndbg"), Some("a b=c"));
        for (text, list) in [
            ("rcu_nocbs=all", Some("0-7")),
            ("rcu_nocbs=1,5-N", Some("1,5-7")),
            ("rcu_nocbs=0-7:1/2", Some("0,2,4,6")),
            ("rcu_nocbs", Some("")),
            ("quiet", None),
        ] {
            assert_eq!(cores(&words(text), "rcu_nocbs"), Ok(list.map(str::to_owned)), "{text}");
        }
        for text in ["rcu_nocbs=x-", "rcu_nocbs=1-", "rcu_nocbs=N", "rcu_nocbs=3-1"] {
            assert!(cores(&words(text), "rcu_nocbs").is_err(), "{text}");
        }
    }
}
