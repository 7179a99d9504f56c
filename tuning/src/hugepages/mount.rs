//! `hugepages mount`.

use std::fmt;
use std::io;

use serde::Serialize;
use spinwake::mem::{PageSize, default_hugepage};

use super::{in_words, pool};
use crate::effects::{CallError, Effects, hint};
use crate::host::Host;
use crate::output::quoted;

/// Mounts a file system of hugepages
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where; made where it is missing
    #[arg(value_name = "DIR", default_value = "/dev/hugepages")]
    pub folder: String,

    /// How big its pages are: 2M or 1G
    #[arg(long, value_name = "SIZE", default_value = "2M", value_parser = super::huge)]
    pub size: PageSize,

    /// Also after the next start: by a unit of systemd's
    #[arg(long)]
    pub persist: bool,
}

/// Hugepages could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Not an absolute path.
    #[error("{folder:?} is no absolute path without `..` and control characters")]
    Relative {
        /// What was given.
        folder: String,
    },
    /// No pages of this size.
    #[error("this kernel has no pages of {size}; `spinwake-tune hugepages` shows what it has")]
    NoPool {
        /// The size.
        size: PageSize,
    },
    /// Pages of another size are mounted there.
    #[error("pages of another size ({mib} MiB) are mounted at {folder}; say another folder")]
    OtherSize {
        /// Where.
        folder: String,
        /// Their size.
        mib: usize,
    },
    /// The folder or the unit could not be made.
    #[error("{path}: {source}{}", hint(source))]
    Write {
        /// Which.
        path: String,
        /// The meaning of errno.
        source: io::Error,
    },
    /// The unit is there, and not part of the next start.
    #[error("pages are mounted, but not at the next start: {unit} is written, and {source}")]
    Enable {
        /// The unit's file.
        unit: String,
        /// What was tried.
        source: CallError,
    },
    /// The kernel refused.
    #[error("{source}; run this as root")]
    Call {
        /// What was tried.
        source: CallError,
    },
}

/// Where hugepages are mounted.
#[derive(Debug, Serialize)]
pub struct Mounted {
    /// The folder.
    pub at: String,
    /// Bytes of its pages.
    pub page_bytes: usize,
    /// Whether they were mounted there before.
    pub before: bool,
    /// The unit that mounts them at each start, where that was asked for.
    pub unit: Option<String>,
}

pub(super) fn mount(args: &Args, host: &Host, effects: &dyn Effects) -> Result<Mounted, MountError> {
    let Args { folder, size, persist: _ } = args;
    // As the kernel shows it, and as the unit must be named: with single slashes.
    let parts: Vec<_> = folder.split('/').filter(|part| !part.is_empty()).collect();
    let plain = !parts.iter().any(|part| [".", ".."].contains(part)) && !folder.contains(char::is_control);
    if !folder.starts_with('/') || parts.is_empty() || !plain {
        return Err(MountError::Relative { folder: folder.clone() });
    }
    let folder = format!("/{}", parts.join("/"));
    let done = |before| {
        let unit = if args.persist { Some(persist(&folder, *size, host, effects)?) } else { None };
        Ok(Mounted { at: folder.clone(), page_bytes: size.bytes(), before, unit })
    };
    // The last one hides those below it.
    if let Some(found) = pool::mounts(host).into_iter().rfind(|mount| mount.at == folder) {
        return match found.page_bytes {
            Some(bytes) if bytes != size.bytes() => Err(MountError::OtherSize { folder, mib: bytes >> 20 }),
            _ => done(true),
        };
    }
    if !host.has(pool::folder(*size, None)) {
        return Err(MountError::NoPool { size: *size });
    }
    effects.make_folder(&folder).map_err(|source| MountError::Write { path: folder.clone(), source })?;
    let options = if *size == PageSize::Huge1G { "pagesize=1G" } else { "pagesize=2M" };
    effects
        .call("mount", &["-t", "hugetlbfs", "-o", options, "hugetlbfs", &folder])
        .map_err(|source| MountError::Call { source })?;
    done(false)
}

/// Has them mounted at each start, by a unit of systemd's, and tells its file. systemd comes with one for its own place.
fn persist(folder: &str, size: PageSize, host: &Host, effects: &dyn Effects) -> Result<String, MountError> {
    let name = unit_name(folder);
    let own = format!("/usr/lib/systemd/system/{name}");
    if default_hugepage(host.root()) == Some(size) && host.has(&own) {
        return Ok(own);
    }
    let unit = format!("/etc/systemd/system/{name}");
    // In a unit, % begins what systemd puts in.
    let text = format!(
        "# Made by spinwake-tune.\n[Unit]\nDescription=Hugepages of {size} as files\n\n[Mount]\nWhat=hugetlbfs\n\
         Where={}\nType=hugetlbfs\nOptions=pagesize={}M\n\n[Install]\nWantedBy=local-fs.target\n",
        folder.replace('%', "%%"),
        size.bytes() >> 20
    );
    effects.save(&unit, &text).map_err(|source| MountError::Write { path: unit.clone(), source })?;
    let enabled = effects.call("systemctl", &["enable", &name]);
    enabled.map_err(|source| MountError::Enable { unit: unit.clone(), source })?;
    Ok(unit)
}

/// What the unit of a mount must be called (systemd.unit(5), string escaping for paths).
fn unit_name(folder: &str) -> String {
    let path = folder.trim_start_matches('/');
    let escaped = path.bytes().enumerate().map(|(at, byte)| match byte {
        b'/' => "-".into(),
        b'.' if at == 0 => "\\x2e".into(),
        b'.' | b':' | b'_' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("\\x{byte:02x}"),
    });
    escaped.collect::<String>() + ".mount"
}

impl fmt::Display for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = in_words(self.page_bytes);
        match self.before {
            true => write!(f, "pages of {size} are mounted at {} already", self.at)?,
            false => write!(
                f,
                "pages of {size} are mounted at {} now (before: nothing)\n  `umount {}` undoes it; --persist does it at each \
                 start",
                self.at,
                quoted(&self.at)
            )?,
        }
        match self.unit.as_deref().and_then(|unit| unit.rsplit_once('/')) {
            Some((folder, name)) => {
                let name = quoted(name);
                write!(f, "\n  at each start, by {name} in {folder}")?;
                // systemd's own is not to be disabled.
                if folder.starts_with("/etc") { write!(f, "; `systemctl disable {name}` undoes that") } else { Ok(()) }
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::fake::Fake;

    fn tried(fake: &Fake, folder: &str, size: PageSize) -> Result<String, String> {
        let args = Args { folder: folder.into(), size, persist: false };
        mount(&args, fake.host(), fake).map(|done| done.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn pages_are_mounted_once() {
        let fake = Fake::new();
        fake.put("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0");
        assert!(
            tried(&fake, "/mnt/huge/", PageSize::Huge2M)
                .unwrap()
                .starts_with("pages of 2 MiB are mounted at /mnt/huge now")
        );
        assert_eq!(fake.done.borrow()[..], ["mount -t hugetlbfs -o pagesize=2M hugetlbfs /mnt/huge"]);
        assert!(fake.host().has("/mnt/huge"));
        fake.put("/proc/self/mountinfo", "9 1 0:9 / /mnt/huge rw - hugetlbfs hugetlbfs rw,pagesize=2M\n");
        assert!(tried(&fake, "/mnt/huge", PageSize::Huge2M).unwrap().contains("already"));
        assert!(tried(&fake, "/mnt/huge", PageSize::Huge1G).unwrap_err().contains("another size (2 MiB)"));
        assert_eq!(fake.done.borrow().len(), 1);
    }

    #[test]
    fn a_unit_mounts_them_at_each_start() {
        let fake = Fake::new();
        fake.put("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0");
        fake.put("/proc/meminfo", "Hugepagesize: 2048 kB\n");
        let persist = |folder: &str, size| {
            let args = Args { folder: folder.into(), size, persist: true };
            mount(&args, fake.host(), &fake).unwrap()
        };
        let done = persist("/mnt//huge-1G 50%/", PageSize::Huge1G);
        let unit = r"/etc/systemd/system/mnt-huge\x2d1G\x2050\x25.mount";
        assert_eq!((done.at.as_str(), done.unit.as_deref()), ("/mnt/huge-1G 50%", Some(unit)));
        let text = fake.host().read(unit).unwrap();
        assert!(text.contains("\nWhere=/mnt/huge-1G 50%%\nType=hugetlbfs\nOptions=pagesize=1024M\n"), "{text}");
        assert!(fake.done.borrow().iter().any(|done| done.starts_with("systemctl enable mnt-")), "{:?}", fake.done);
        let shown = done.to_string();
        assert!(shown.contains(r"`systemctl disable 'mnt-huge\x2d1G\x2050\x25.mount'`"), "{shown}");
        // systemd has one of its own for this place.
        fake.put("/usr/lib/systemd/system/dev-hugepages.mount", "");
        fake.put("/proc/self/mountinfo", "9 1 0:9 / /dev/hugepages rw - hugetlbfs hugetlbfs rw,pagesize=2M\n");
        let done = persist("/dev/hugepages", PageSize::Huge2M);
        assert_eq!(done.unit.as_deref(), Some("/usr/lib/systemd/system/dev-hugepages.mount"));
        assert_eq!(unit_name("/.a_b"), r"\x2ea_b.mount");
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        let fake = Fake::new();
        for folder in ["huge", "/", "/a/../b", "/a\nb"] {
            assert!(tried(&fake, folder, PageSize::Huge2M).unwrap_err().contains("no absolute path"), "{folder}");
        }
        assert!(tried(&fake, "/huge", PageSize::Huge1G).unwrap_err().contains("no pages of 1 GiB"));
    }
}
