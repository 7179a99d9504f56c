//! All of it as one HTML page: tables and plots, no script, nothing from elsewhere, fit to attach to a bug report.
//!
//! What the machine says (names in `/sys`, the kernel's command line) is shown as text, whatever it is.

mod html;
mod machine;
mod plot;
mod sections;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use spinwake::cpu::Topology;
use spinwake::pci::Bdf;

use crate::check::{self, CheckReport};
use crate::host::Host;
use crate::jitter::{self, Comparison, JitterError, JitterReport};
use crate::output::Report;
use crate::placement::{Placement, PlacementError};
use crate::units::parse_seconds;
use crate::wake::{self, WakeReport};
use html::Html;

/// What to write, and what to measure for it.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The file to write
    #[arg(value_name = "FILE.html")]
    pub file: PathBuf,
    /// How long to measure jitter, and again sleeping
    #[arg(long, default_value = "10", value_parser = parse_seconds)]
    pub seconds: Duration,
    /// Judges a planned placement, too, as in `check --for`, and measures its first core
    #[arg(long = "for", value_name = "FILE.toml")]
    pub plan: Option<PathBuf>,
    /// The core to measure; otherwise an isolated one, or the last
    #[arg(long)]
    pub core: Option<usize>,
    /// An earlier result of `jitter --save`, to be compared with
    #[arg(long, value_name = "FILE.json")]
    pub before: Option<PathBuf>,
    /// Asks the kernel's tracers, too (as root)
    #[arg(long)]
    pub trace: bool,
    /// A device bound to vfio-pci, whose interrupts are measured, too
    #[arg(long, value_name = "BDF")]
    pub device: Option<Bdf>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PageReport {
    /// The file.
    pub file: PathBuf,
    /// Its length in bytes.
    pub bytes: usize,
    /// The core that was measured.
    pub core: usize,
    /// What the page does not have, and why.
    pub missing: Vec<String>,
}

/// The page was not written.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The earlier result cannot be read.
    #[error(transparent)]
    Jitter(#[from] JitterError),
    /// The placement cannot be judged.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// There is no core to measure.
    #[error("which cores there are is unknown here; name one with --core N")]
    NoCore,
    /// The file cannot be written.
    #[error("{path}: the page could not be written ({source}); does its folder exist?")]
    Write {
        /// The file.
        path: PathBuf,
        /// The meaning of errno.
        source: io::Error,
    },
}

/// Everything that stands on the page.
#[derive(Debug)]
struct Contents {
    machine: Vec<(String, String)>,
    check: CheckReport,
    devices: Vec<Vec<String>>,
    hugepages: Vec<Vec<String>>,
    jitter: Option<JitterReport>,
    before: Option<JitterReport>,
    wake: Option<WakeReport>,
    missing: Vec<String>,
}

/// Checks, measures, and writes the page.
///
/// # Errors
///
/// When the earlier result cannot be read, no core is known, or the file cannot be written. What cannot be measured is
/// said on the page instead.
pub fn run(args: &Args, host: &Host) -> Result<PageReport, PageError> {
    let before = args.before.as_deref().map(jitter::load).transpose()?;
    let plan = args.plan.as_deref().map(Placement::load).transpose()?;
    // Before minutes of measuring: can it be written at all?
    let write = |text: &str| {
        let failed = |source| PageError::Write { path: args.file.clone(), source };
        std::fs::write(&args.file, text).map_err(failed)
    };
    write("")?;
    let planned = plan.as_ref().and_then(|plan| plan.workers.first()).map(|worker| worker.core);
    let core = args.core.or(planned).or_else(|| choose(&host.topology())).ok_or(PageError::NoCore)?;
    let stop = jitter::ended_by_signals()?;
    let mut contents = Contents {
        machine: machine::machine(host, SystemTime::now()),
        devices: machine::devices(host),
        hugepages: machine::hugepages(host),
        check: check::examine(host, &check::own_environment(), plan.as_ref()),
        jitter: None,
        before,
        wake: None,
        missing: Vec::new(),
    };
    measure(args, core, host, &stop, &mut contents);
    let text = render(&contents);
    write(&text)?;
    Ok(PageReport { file: args.file.clone(), bytes: text.len(), core, missing: contents.missing })
}

/// An isolated core that this process may use, else the last one that it may.
fn choose(topology: &Topology) -> Option<usize> {
    let allowed = topology.allowed()?;
    let isolated = topology.isolated().map(|isolated| isolated.intersection(allowed)).unwrap_or_default();
    isolated.iter().last().or_else(|| allowed.iter().last())
}

fn measure(args: &Args, core: usize, host: &Host, stop: &AtomicBool, contents: &mut Contents) {
    let jitter = jitter::Args {
        core,
        seconds: args.seconds,
        threshold: Duration::from_micros(1),
        save: None,
        against: None,
        trace: args.trace,
    };
    match jitter::measure(&jitter, host, stop) {
        Ok(mut report) => {
            if let (Some(before), Some(path)) = (&contents.before, &args.before) {
                let (old, new) = ((before.core, &before.gaps), (report.core, &report.gaps));
                report.against = Some(Comparison::new(&path.display().to_string(), old, new));
            }
            contents.jitter = Some(report);
        }
        Err(error) => contents.missing.push(format!("jitter was not measured: {error}")),
    }
    if stop.load(Ordering::Relaxed) {
        contents.missing.push("sleeping was not measured: it was ended early".into());
        return;
    }
    match wake::run_until(&wake::Args { core, seconds: args.seconds, device: args.device }, stop) {
        Ok(report) => contents.wake = Some(report),
        Err(error) => contents.missing.push(format!("sleeping was not measured: {error}")),
    }
}

fn render(contents: &Contents) -> String {
    let mut html = Html::default();
    html.raw("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")
        .raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n")
        // Nothing on it runs or loads anything, whatever a name in it may say.
        .raw(
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n",
        )
        .raw("<title>spinwake-tune report</title>\n<style>\n")
        .raw(include_str!("style.css"))
        .raw("</style>\n</head>\n<body>\n<h1>What this machine does to a polled-mode driver</h1>\n<nav>");
    let parts = [
        ("<a href=\"#machine\">Machine</a>", true),
        ("<a href=\"#check\">Check</a>", true),
        ("<a href=\"#jitter\">Jitter</a>", contents.jitter.is_some()),
        ("<a href=\"#wake\">Sleeping</a>", contents.wake.is_some()),
    ];
    parts.iter().filter(|part| part.1).for_each(|part| {
        html.raw(part.0);
    });
    html.raw("</nav>\n<h2 id=\"machine\">The machine</h2>\n").pairs(&contents.machine);
    if !contents.missing.is_empty() {
        html.element("p class=\"note\"", "Missing on this page:").list(&contents.missing);
    }
    html.raw("<h3>Network devices, and what is bound to vfio-pci</h3>\n");
    if contents.devices.is_empty() {
        html.element("p class=\"note\"", "None, or the machine does not tell.");
    } else {
        let heading = ["address", "id", "driver", "IOMMU group", "NUMA node", "interface"];
        html.table(&heading, "   nn", &contents.devices);
    }
    html.raw("<h3>Hugepages</h3>\n");
    if contents.hugepages.is_empty() {
        html.element("p class=\"note\"", "None, or the machine does not tell.");
    } else {
        html.table(&["size", "where", "pages", "free", "promised"], "n nnn", &contents.hugepages);
    }
    sections::check(&mut html, &contents.check.items);
    if let Some(report) = &contents.jitter {
        sections::jitter(&mut html, report, contents.before.as_ref());
    }
    if let Some(report) = &contents.wake {
        sections::wake(&mut html, report);
    }
    html.raw("</body>\n</html>\n");
    html.into_text()
}

impl fmt::Display for PageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} KiB, with measurements of core {}; any browser shows it, without a network",
            self.file.display(),
            self.bytes.div_ceil(1024),
            self.core
        )?;
        self.missing.iter().try_for_each(|what| write!(f, "\n  {what}"))
    }
}

impl Report for PageReport {}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const EVIL: &str = "</style><script>alert(1)</script><img src=x onerror=alert(2)>";

    /// A machine whose every name tries to be markup.
    fn hostile() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        let write = |path: &str, text: &str| {
            let path = host.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("/proc/cmdline", EVIL);
        write("/proc/cpuinfo", &format!("model name : {EVIL}\nflags : {EVIL}\n"));
        write("/proc/interrupts", &format!("  CPU0\n 1: 5 {EVIL}\n"));
        write("/etc/os-release", &format!("PRETTY_NAME=\"{EVIL}\"\n"));
        write("/sys/class/dmi/id/product_name", EVIL);
        write("/sys/bus/pci/devices/0000:01:00.0/class", "0x020000\n");
        write("/sys/bus/pci/devices/0000:01:00.0/net/<b>eth0<!--/flags", "0x1003\n");
        symlink("/drivers/<i>driver", host.path("/sys/bus/pci/devices/0000:01:00.0/driver")).unwrap();
        (root, host)
    }

    fn args(folder: &std::path::Path) -> Args {
        let core = spinwake::sys::sched::affinity(0).unwrap()[0];
        Args {
            file: folder.join("page.html"),
            seconds: Duration::from_millis(200),
            plan: None,
            core: Some(core),
            before: None,
            trace: false,
            device: None,
        }
    }

    #[test]
    fn nothing_from_the_machine_is_markup() {
        let (folder, host) = hostile();
        let args = args(folder.path());
        let report = run(&args, &host).unwrap();
        let text = fs::read_to_string(&args.file).unwrap();
        assert_eq!((text.len(), report.missing.len()), (report.bytes, 0));
        for tag in ["<script", "<img", "<b>eth0", "<!--", "<i>driver"] {
            assert!(!text.contains(tag), "{tag} is markup");
        }
        assert!(text.contains("&lt;script&gt;") && text.contains("&lt;b&gt;eth0") && text.contains("&lt;i&gt;driver"));
        assert_eq!(text.matches("</style>").count(), 1);
        // Nothing from elsewhere, and no script of its own.
        for part in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!text.replace("src=x", "").contains(part), "{part}");
        }
    }

    #[test]
    fn a_page_compares_with_an_earlier_result_and_says_what_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        let args = args(folder.path());
        let before = folder.path().join("before.json");
        let measured = jitter::Args {
            core: args.core.unwrap(),
            seconds: args.seconds,
            threshold: Duration::from_micros(1),
            save: Some(before.clone()),
            against: None,
            trace: false,
        };
        jitter::run(&measured, &Host::default()).unwrap();
        run(&Args { before: Some(before), ..args.clone() }, &Host::default()).unwrap();
        let text = fs::read_to_string(&args.file).unwrap();
        for part in ["Before and after", "now to before", "prefers-color-scheme: dark", "class=\"legend\"", "--wait "] {
            assert!(text.contains(part), "no {part}");
        }
        // What a device or the tracers do not tell is said on the page, and costs none of the rest.
        let empty = Host::at(folder.path());
        let asked = Args { trace: true, device: Some("ffff:1f:1f.7".parse().unwrap()), ..args.clone() };
        assert!(run(&asked, &empty).unwrap().to_string().contains("ffff:1f:1f.7"));
        assert!(fs::read_to_string(&args.file).unwrap().contains("no tracefs"));
        let report = run(&Args { core: Some(5_000), ..args.clone() }, &Host::default()).unwrap();
        assert_eq!(report.missing.len(), 2, "{report}");
        assert!(fs::read_to_string(&args.file).unwrap().contains("jitter was not measured: cannot pin"));
    }

    #[test]
    fn a_planned_placement_is_judged_and_its_core_measured() {
        let folder = tempfile::tempdir().unwrap();
        let own = args(folder.path());
        let (plan, core) = (folder.path().join("plan.toml"), own.core.unwrap());
        fs::write(&plan, format!("[[workers]]\ncore = {core}\nports = [\"soft:\"]\n")).unwrap();
        let report = run(&Args { plan: Some(plan), core: None, ..own.clone() }, &Host::default()).unwrap();
        assert_eq!(report.core, core);
        let id = format!("@{core}");
        assert!(fs::read_to_string(&own.file).unwrap().contains(&id), "no item {id} of the plan");
    }

    #[test]
    fn what_cannot_be_written_or_read_is_refused_before_measuring() {
        let folder = tempfile::tempdir().unwrap();
        let long = Args { seconds: Duration::from_secs(3_600), ..args(folder.path()) };
        let no_folder = Args { file: folder.path().join("no/page.html"), ..long.clone() };
        assert!(matches!(run(&no_folder, &Host::default()), Err(PageError::Write { .. })));
        let no_before = Args { before: Some(folder.path().join("no.json")), ..long };
        assert!(matches!(run(&no_before, &Host::default()), Err(PageError::Jitter(_))));
        let no_plan = Args { before: None, plan: Some(folder.path().join("no.toml")), ..no_before };
        assert!(matches!(run(&no_plan, &Host::default()), Err(PageError::Placement(_))));
    }
}
