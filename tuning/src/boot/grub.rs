//! GRUB: its settings are shell scripts that the program which makes its menu runs.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::words;
use crate::apply::Plan;
use crate::change::{Change, State, Target};
use crate::host::Host;
use crate::journal::Entry;

const SETTINGS: &str = "/etc/default/grub";
/// Debian's and its descendants' program reads this folder, in the order of names.
const FOLDER: &str = "/etc/default/grub.d";
const DROP_IN: &str = "/etc/default/grub.d/99-spinwake-tune.cfg";
/// The programs that make the menu, with the file that tells which of them is the right one.
const MAKERS: [(&str, &str); 4] = [
    ("update-grub", ""),
    ("grub2-mkconfig -o /boot/grub2/grub.cfg", "/boot/grub2/grub.cfg"),
    ("grub-mkconfig -o /boot/grub/grub.cfg", "/boot/grub/grub.cfg"),
    ("grub2-mkconfig -o /boot/grub/grub.cfg", "/boot/grub/grub.cfg"),
];
const BEGIN: &str = "# --- spinwake-tune: begin";
const END: &str = "# --- spinwake-tune: end";
/// How the line of the block begins in which its parameters stand, up to the closing quote.
const ADDED: &str = "GRUB_CMDLINE_LINUX_DEFAULT=\"$(spinwake_kept \"${GRUB_CMDLINE_LINUX_DEFAULT:-}\")";

/// Whether there is GRUB.
pub(super) fn is_there(host: &Host) -> bool {
    host.has(SETTINGS) || host.has(FOLDER)
}

/// Adds what has GRUB boot with `parameters`. Returns whether there is GRUB.
pub(super) fn plan(host: &Host, parameters: &[String], entries: &[Entry], plan: &mut Plan) -> bool {
    if !is_there(host) {
        return false;
    }
    let wanted = if reads_folder(host) {
        (DROP_IN, State::content(block(&with_earlier(&host.read(DROP_IN).unwrap_or_default(), parameters))))
    } else {
        match (Target::File { path: SETTINGS.into() }).read(host) {
            Ok(State::Content(bytes)) => {
                let Some(text) = bytes.to_vec().and_then(|bytes| String::from_utf8(bytes).ok()) else {
                    plan.skip(SETTINGS, "it is no text");
                    return true;
                };
                (SETTINGS, State::content(with_block(&text, &block(&with_earlier(&text, parameters)))))
            }
            Ok(_) => (SETTINGS, State::content(block(parameters))),
            Err(error) => {
                plan.skip(SETTINGS, &format!("it cannot be read: {error}"));
                return true;
            }
        }
    };
    let maker =
        MAKERS.iter().find(|(program, needs)| is_installed(host, program) && (needs.is_empty() || host.has(needs)));
    let menu = maker.map(|(program, _)| Target::BootMenu { program: (*program).into() });
    let (ran, not) = (State::Value("made anew".into()), State::Absent);
    let change = |target: &Target, old: &State, new: &State| Change {
        target: target.clone(),
        old: old.clone(),
        new: new.clone(),
        why: "the boot menu holds a copy of GRUB's settings".into(),
        refusable: false,
        boot: true,
    };
    // Made again when the files are changed, and again when they are changed back, so one change of the menu stands before
    // them and one behind.
    let place = plan.changes.len();
    let why = "the kernel takes these parameters at boot only";
    let changed = plan.want_file(host, Target::File { path: wanted.0.into() }, wanted.1, why, true);
    match menu {
        None => plan
            .notes
            .push("no program that makes GRUB's menu is found: run update-grub, or what stands for it here".into()),
        Some(menu) if changed => {
            plan.changes.insert(place, change(&menu, &ran, &not));
            plan.changes.push(change(&menu, &not, &ran));
        }
        // The files were changed by a run that did not come to its end.
        Some(menu) if is_stale(entries, &menu) => plan.changes.push(change(&menu, &not, &ran)),
        Some(_) => {}
    }
    true
}

/// Whether the last of the menu's changes is the one before the files'.
fn is_stale(entries: &[Entry], menu: &Target) -> bool {
    let last = entries.iter().rfind(|entry| entry.change.target == *menu);
    last.is_some_and(|entry| entry.change.new == State::Absent)
}

/// Whether the program that makes the menu reads the folder. Where it is, it was made to be read.
fn reads_folder(host: &Host) -> bool {
    host.has(FOLDER)
        || ["/usr/sbin/grub-mkconfig", "/usr/bin/grub-mkconfig"]
            .iter()
            .any(|program| host.read(program).is_some_and(|text| text.contains("/default/grub.d")))
}

/// Whether a program is there: for this machine along PATH, too, which an ordinary user has without the sbin folders.
fn is_installed(host: &Host, program: &str) -> bool {
    let name = program.split(' ').next().unwrap_or(program);
    let runs = |path: &Path| path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    let along_path =
        || env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|folder| runs(&folder.join(name)));
    (host.is_this() && along_path())
        || ["/usr/sbin", "/sbin", "/usr/bin"].iter().any(|folder| runs(&host.path(Path::new(folder).join(name))))
}

/// Shell commands that put the parameters in the place of those of the same names. GRUB's recovery mode does not use the
/// second variable, so that it boots without them.
fn block(parameters: &[String]) -> String {
    let patterns = words::patterns(parameters).join(" | ");
    let parameters = parameters.join(" ");
    format!(
        "{BEGIN}
# Written by spinwake-tune apply --boot; taken away by spinwake-tune revert --boot.
# Takes parameters of the same names out of what the settings above say, and adds these.
case $- in *f*) spinwake_glob= ;; *) spinwake_glob=on && set -f ;; esac
spinwake_kept() {{
    for spinwake_word in $1; do
        case $spinwake_word in {patterns}) ;; *) printf '%s ' \"$spinwake_word\" ;; esac
    done
}}
GRUB_CMDLINE_LINUX=$(spinwake_kept \"${{GRUB_CMDLINE_LINUX:-}}\")
GRUB_CMDLINE_LINUX=${{GRUB_CMDLINE_LINUX% }}
{ADDED}{parameters}\"
if [ -n \"$spinwake_glob\" ]; then set +f; fi
{END}
"
    )
}

/// `parameters`, with those of the block in `text`, an earlier profile's, that have no such name.
fn with_earlier(text: &str, parameters: &[String]) -> Vec<String> {
    let added = text.lines().find_map(|line| line.strip_prefix(ADDED)?.strip_suffix('"')).unwrap_or_default();
    words::merge(added, parameters).split(' ').map(str::to_owned).collect()
}

/// `text` with the block at its end, and no other one in it.
fn with_block(text: &str, block: &str) -> String {
    let without = match (text.find(BEGIN), text.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            let rest = &text[end + END.len()..];
            format!("{}{}", &text[..begin], rest.strip_prefix('\n').unwrap_or(rest))
        }
        _ => text.into(),
    };
    let line_break = if without.is_empty() || without.ends_with('\n') { "" } else { "\n" };
    format!("{without}{line_break}{block}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        for (path, text) in files {
            let path = host.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (root, host)
    }

    fn wanted() -> Vec<String> {
        ["isolcpus=1", "skew_tick=1", "iommu=pt"].map(String::from).to_vec()
    }

    /// What GRUB's program finds in both variables after having read `settings` and then `more`.
    fn sourced(settings: &str, more: &str) -> String {
        let script = format!("set -e\n{settings}\n{more}\necho \"$GRUB_CMDLINE_LINUX|$GRUB_CMDLINE_LINUX_DEFAULT|$-\"");
        let output = Command::new("sh").arg("-c").arg(&script).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let (variables, flags) = text.trim_end().rsplit_once('|').unwrap();
        assert!(!flags.contains('f'), "{flags}");
        variables.into()
    }

    #[test]
    fn the_shell_merges_as_it_should() {
        let block = block(&wanted());
        let settings = "GRUB_CMDLINE_LINUX='root=x isolcpus=3 *'\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet skew-tick=0 iommu=off splash\"";
        assert_eq!(sourced(settings, &block), "root=x *|quiet splash isolcpus=1 skew_tick=1 iommu=pt");
        assert_eq!(sourced("", &block), "|isolcpus=1 skew_tick=1 iommu=pt");
        assert_eq!(sourced(&block, &block), "|isolcpus=1 skew_tick=1 iommu=pt", "twice is once");
    }

    #[test]
    fn a_drop_in_where_there_is_a_folder() {
        let (_root, host) = tree(&[(SETTINGS, "GRUB_TIMEOUT=5\n"), ("/etc/default/grub.d/50-cloud.cfg", "")]);
        let mut first = Plan::default();
        assert!(plan(&host, &wanted(), &[], &mut first));
        let targets: Vec<_> = first.changes.iter().map(|change| change.target.to_string()).collect();
        assert_eq!(targets, [DROP_IN]);
        assert!(first.notes.iter().any(|note| note.contains("update-grub")), "{:?}", first.notes);
        first.changes[0].target.write(&host, &first.changes[0].new).unwrap();
        let mut second = Plan::default();
        plan(&host, &wanted(), &[], &mut second);
        assert!(second.changes.is_empty());
    }

    #[test]
    fn parameters_of_an_earlier_profile_stay() {
        let (_root, host) = tree(&[(SETTINGS, "GRUB_TIMEOUT=5\n"), (DROP_IN, &block(&wanted()))]);
        let mut second = Plan::default();
        plan(&host, &["isolcpus=2".into(), "quiet".into()], &[], &mut second);
        let State::Content(bytes) = &second.changes[0].new else { panic!("{:?}", second.changes[0]) };
        let text = String::from_utf8(bytes.to_vec().unwrap()).unwrap();
        assert_eq!(sourced("GRUB_CMDLINE_LINUX_DEFAULT=isolcpus=7", &text), "|skew_tick=1 iommu=pt isolcpus=2 quiet");
    }

    #[test]
    fn the_settings_themselves_where_there_is_none_and_the_menu_is_made_anew() {
        let (_root, host) = tree(&[(SETTINGS, "GRUB_TIMEOUT=5"), ("/usr/sbin/update-grub", "#!/bin/sh\n")]);
        fs::set_permissions(host.path("/usr/sbin/update-grub"), fs::Permissions::from_mode(0o755)).unwrap();
        let mut first = Plan::default();
        plan(&host, &wanted(), &[], &mut first);
        let shown: Vec<_> = first.changes.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["update-grub is run", "/etc/default/grub: changed", "update-grub is run"]);
        let State::Content(bytes) = &first.changes[1].new else { panic!("{:?}", first.changes[1]) };
        let text = String::from_utf8(bytes.to_vec().unwrap()).unwrap();
        assert!(text.starts_with("GRUB_TIMEOUT=5\n# ---") && with_block(&text, &block(&wanted())) == text, "{text}");
        assert_eq!(with_block(&format!("{text}X=1\n"), "B\n"), "GRUB_TIMEOUT=5\nX=1\nB\n");
        // A run that was stopped behind the file leaves the menu to be made.
        fs::write(host.path(SETTINGS), &text).unwrap();
        let entry = |number, change: &Change| Entry {
            number,
            profile: "x".into(),
            boot_id: None,
            change: change.clone(),
            refused: false,
        };
        let mut entries = vec![entry(1, &first.changes[0]), entry(2, &first.changes[1])];
        let mut second = Plan::default();
        plan(&host, &wanted(), &entries, &mut second);
        assert_eq!(second.changes, [first.changes[2].clone()]);
        entries.push(entry(3, &first.changes[2]));
        let mut third = Plan::default();
        plan(&host, &wanted(), &entries, &mut third);
        assert!(third.changes.is_empty());
    }
}
