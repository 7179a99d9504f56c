//! A systemd unit that applies the profile at each boot.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use spinwake::cpu::CpuSet;

use super::plan::Plan;
use crate::change::{State, Target};
use crate::host::Host;
use crate::profile::Profile;

const UNIT: &str = "/etc/systemd/system/spinwake-tune.service";
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants/spinwake-tune.service";

/// Adds the unit, and the link that has it started at boot.
///
/// # Errors
///
/// When where this program or the profile lies cannot be told.
pub(super) fn plan(host: &Host, profile: &Profile, cores: Option<&CpuSet>, plan: &mut Plan) -> io::Result<()> {
    if !host.has("/etc/systemd") && !host.has("/usr/lib/systemd/systemd") && !host.has("/lib/systemd/systemd") {
        plan.skip(UNIT, "there is no systemd here; have `spinwake-tune apply` run at boot by other means");
        return Ok(());
    }
    let program = std::env::current_exe()?;
    let name = if profile.is_own() { path_text(&fs::canonicalize(&profile.name)?)? } else { profile.name.clone() };
    for path in std::iter::once(program.as_path()).chain(profile.is_own().then_some(Path::new(&name))) {
        if let Some(open) = not_roots_alone(path) {
            plan.notes.push(format!(
                "at each boot the unit has root use {}, and others than root may write to {}: put it where only root may, and \
                 apply again from there",
                path.display(),
                open.display()
            ));
        }
    }
    let mut words = vec![path_text(&program)?, "apply".into(), name];
    words.extend(cores.iter().map(|cores| format!("--cores={cores}")));
    let command: Vec<_> = words.iter().map(|word| quoted(word)).collect();
    let unit = format!(
        "# Written by spinwake-tune apply --persist; taken away by spinwake-tune revert.\n\
         [Unit]\n\
         Description=Keeps worker cores quiet for polled-mode drivers\n\
         After=systemd-sysctl.service systemd-modules-load.service systemd-udev-settle.service tuned.service\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStart={}\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        command.join(" ")
    );
    let why = "values below /proc and /sys are gone after a reboot; this sets them again";
    plan.want_file(host, Target::File { path: UNIT.into() }, State::content(unit), why, false);
    let leads_to = State::Value("../spinwake-tune.service".into());
    plan.want_file(host, Target::Link { path: WANTED.into() }, leads_to, "the unit is started at boot", false);
    Ok(())
}

/// What of a path others than root may change, so that something else stands there at the next boot.
fn not_roots_alone(path: &Path) -> Option<PathBuf> {
    let is_open = |path: &&Path| {
        // Of a folder with the sticky bit, everybody takes away their own files only.
        let kept = |file: &Metadata| file.is_dir() && file.mode() & 0o1000 != 0;
        let shared = |file: &Metadata| file.mode() & 0o002 != 0 || (file.mode() & 0o020 != 0 && file.gid() != 0);
        fs::metadata(path).is_ok_and(|file| file.uid() != 0 || (shared(&file) && !kept(&file)))
    };
    path.ancestors().find(is_open).map(Path::to_owned)
}

fn path_text(path: &Path) -> io::Result<String> {
    let text = path.to_str().filter(|text| !text.contains(char::is_control));
    text.map(str::to_owned).ok_or_else(|| io::Error::other(format!("{} cannot stand in a unit", path.display())))
}

/// A word of a command line as systemd.service(5) wants it: specifiers, variables and quotes mean themselves.
fn quoted(word: &str) -> String {
    let word = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    if word.contains(|c: char| c.is_whitespace() || "\\\"';#".contains(c)) { format!("\"{word}\"") } else { word }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_themselves() {
        assert_eq!(quoted("/usr/bin/spinwake-tune"), "/usr/bin/spinwake-tune");
        assert_eq!(quoted("/opt/50% $HOME/\"x\""), "\"/opt/50%% $$HOME/\\\"x\\\"\"");
    }

    #[test]
    fn the_unit_is_enabled_by_its_link() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        let profile = Profile::find("balanced").unwrap();
        let mut plan = Plan::default();
        super::plan(&host, &profile, None, &mut plan).unwrap();
        assert!(plan.changes.is_empty() && plan.skipped[0].reason.contains("no systemd"));
        fs::create_dir_all(host.path("/etc/systemd/system")).unwrap();
        super::plan(&host, &profile, Some(&"2-3".parse().unwrap()), &mut plan).unwrap();
        let targets: Vec<_> = plan.changes.iter().map(|change| change.target.to_string()).collect();
        assert_eq!(targets, [UNIT, "/etc/systemd/system/multi-user.target.wants", WANTED]);
        let State::Content(bytes) = &plan.changes[0].new else { panic!("{:?}", plan.changes[0]) };
        let unit = String::from_utf8(bytes.to_vec().unwrap()).unwrap();
        assert!(unit.contains(" apply balanced --cores=2-3\n") && unit.contains("Type=oneshot"), "{unit}");
    }

    #[test]
    fn what_others_than_root_may_write_is_told() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("open/bin")).unwrap();
        fs::write(root.path().join("open/bin/tune"), "").unwrap();
        fs::set_permissions(root.path().join("open"), fs::Permissions::from_mode(0o777)).unwrap();
        // An ordinary user's file is open by itself.
        let is_root = fs::metadata(root.path()).unwrap().uid() == 0;
        let open = if is_root { "open" } else { "open/bin/tune" };
        assert_eq!(not_roots_alone(&root.path().join("open/bin/tune")), Some(root.path().join(open)));
    }
}
