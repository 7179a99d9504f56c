//! systemd-boot, and GRUB where it reads the same entries: one file for each kernel, and the command line that files of later
//! kernels are made with.
//!
//! Format: the Boot Loader Specification of the UAPI group (type 1).

use std::io;

use super::words::merge;
use crate::apply::Plan;
use crate::change::{Change, State, Target};
use crate::host::Host;

/// What kernel-install(8) gives to kernels that are installed later.
const COMMAND_LINE: &str = "/etc/kernel/cmdline";
/// Where entries are, depending on where the boot partition is mounted.
const FOLDERS: [&str; 3] = ["/boot/loader/entries", "/efi/loader/entries", "/boot/efi/loader/entries"];
const IMAGES: [&str; 3] = ["/boot/EFI/Linux", "/efi/EFI/Linux", "/boot/efi/EFI/Linux"];
const WHY: &str = "the kernel takes these parameters at boot only";

/// Whether there are any.
pub(super) fn are_there(host: &Host) -> bool {
    let is_entry = |name: &String| name.ends_with(".conf");
    host.has(COMMAND_LINE) || FOLDERS.iter().any(|folder| host.names(folder).iter().any(is_entry))
}

/// Adds what has these boot with `parameters`. Returns whether there are any.
pub(super) fn plan(host: &Host, parameters: &[String], plan: &mut Plan) -> bool {
    let mut found = false;
    if host.has(COMMAND_LINE) {
        found = true;
        let merged = |text: &str| text.lines().map(|line| line_merged(line, parameters)).collect();
        rewrite(host, COMMAND_LINE, merged, plan);
    }
    for folder in FOLDERS {
        for name in host.names(folder).iter().filter(|name| name.ends_with(".conf")) {
            found = true;
            let path = format!("{folder}/{name}");
            if name.contains("rescue") || name.contains("recovery") || name.contains("memtest") {
                plan.skip(&path, "it is for rescue, and stays as it is");
            } else if host.read(&path).is_some_and(|text| starts_no_kernel(&text)) {
                plan.skip(&path, "it starts a program of the firmware's, and no kernel as far as it says");
            } else {
                rewrite(host, &path, |text| entry_merged(text, parameters), plan);
            }
        }
        if found && !host.has(COMMAND_LINE) && host.has(folder) {
            plan.notes.push(
                "kernels installed later are booted with what this one was, until there is /etc/kernel/cmdline".into(),
            );
        }
    }
    if IMAGES.iter().any(|folder| host.names(folder).iter().any(|name| name.ends_with(".efi"))) {
        plan.notes.push(
            "there are unified kernel images, which hold their command line: make them anew (kernel-install add-all)"
                .into(),
        );
    }
    found
}

/// Whether this was a change of an entry that has been removed together with the kernel that it starts.
pub(crate) fn is_obsolete(host: &Host, change: &Change) -> io::Result<bool> {
    let (Target::File { path }, State::Content(bytes)) = (&change.target, &change.old) else { return Ok(false) };
    let Some(folder) = FOLDERS.iter().find(|folder| path.starts_with(**folder)) else { return Ok(false) };
    let text = bytes.to_vec().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    // Its path begins where the partition is mounted that the entries are on: there, or at the root.
    let kernel = text.lines().find_map(|line| line.trim_start().strip_prefix("linux")?.strip_prefix([' ', '\t']));
    let place = folder.trim_end_matches("/loader/entries");
    let is_there = |kernel: &str| host.has(format!("{place}/{}", kernel.trim_start_matches('/'))) || host.has(kernel);
    let has_kernel = kernel.is_none_or(|kernel| is_there(kernel.trim()));
    Ok(!has_kernel && change.target.is(host, &State::Absent)?)
}

/// Adds the change of one file from its text to another, unless that is the same.
fn rewrite(host: &Host, path: &str, merged: impl Fn(&str) -> String, plan: &mut Plan) {
    let target = Target::File { path: path.into() };
    match target.read(host) {
        Ok(State::Content(bytes)) => match bytes.to_vec().and_then(|bytes| String::from_utf8(bytes).ok()) {
            Some(text) => {
                plan.want_file(host, target, State::content(merged(&text)), WHY, true);
            }
            None => plan.skip(path, "it is no text"),
        },
        Ok(_) => plan.skip(path, "it is no file"),
        Err(error) => plan.skip(path, &format!("it cannot be read: {error}")),
    }
}

/// A line of `/etc/kernel/cmdline`; comments and empty lines stay.
fn line_merged(line: &str, parameters: &[String]) -> String {
    let is_text = line.trim().is_empty() || line.trim_start().starts_with('#');
    if is_text { format!("{line}\n") } else { format!("{}\n", merge(line, parameters)) }
}

/// Whether an entry starts an EFI program, such as a shell or another system, which would not know what to do with a
/// kernel's options. A kernel may be started as such a program, too: it has an initial RAM disk, then.
fn starts_no_kernel(text: &str) -> bool {
    let has = |key: &str| text.lines().any(|line| line.split_whitespace().next() == Some(key));
    has("efi") && !has("linux") && !has("initrd")
}

/// An entry whose options have the parameters: options may stand in several lines, which count as one.
fn entry_merged(text: &str, parameters: &[String]) -> String {
    let options = |line: &str| -> Option<String> {
        let rest = line.trim_start().strip_prefix("options")?;
        rest.starts_with(char::is_whitespace).then(|| rest.trim().into())
    };
    let all: Vec<String> = text.lines().filter_map(options).collect();
    let merged = merge(&all.join(" "), parameters);
    if merge(&all.join(" "), &[]) == merged {
        return text.into();
    }
    let mut lines: Vec<String> = Vec::new();
    let mut told = false;
    for line in text.lines() {
        if options(line).is_none() {
            lines.push(line.into());
        } else if !told {
            lines.push(format!("options {merged}"));
            told = true;
        }
    }
    if !told {
        lines.push(format!("options {merged}"));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn wanted() -> Vec<String> {
        ["isolcpus=1".into(), "iommu=pt".into()].into()
    }

    #[test]
    fn options_are_merged_and_the_rest_stays() {
        let entry = "title   Debian\nversion 6.12\noptions root=UUID=1 isolcpus=7\n# note\noptions quiet\ninitrd  /i\n";
        let merged = entry_merged(entry, &wanted());
        assert_eq!(
            merged,
            "title   Debian\nversion 6.12\noptions root=UUID=1 quiet isolcpus=1 iommu=pt\n# note\ninitrd  /i\n"
        );
        assert_eq!(entry_merged(&merged, &wanted()), merged);
        assert_eq!(entry_merged("linux /vmlinuz\n", &wanted()), "linux /vmlinuz\noptions isolcpus=1 iommu=pt\n");
        let spaced = "options   iommu=pt   isolcpus=1";
        assert_eq!(entry_merged(spaced, &wanted()), spaced, "right already, to the last byte");
    }

    #[test]
    fn what_starts_no_kernel_gets_no_parameters() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        fs::create_dir_all(host.path("/boot/loader/entries")).unwrap();
        for (name, text) in [
            ("arch", "title Arch\nefi /vmlinuz-linux\ninitrd /i\noptions root=/dev/vda1\n"),
            ("shell", "title UEFI Shell\nefi /shellx64.efi\n"),
        ] {
            fs::write(host.path(format!("/boot/loader/entries/{name}.conf")), text).unwrap();
        }
        let mut found = Plan::default();
        assert!(plan(&host, &wanted(), &mut found));
        let targets: Vec<_> = found.changes.iter().map(|change| change.target.to_string()).collect();
        assert_eq!(targets, ["/boot/loader/entries/arch.conf"]);
        assert!(found.skipped[0].reason.contains("no kernel"), "{:?}", found.skipped);
    }

    #[test]
    fn entries_and_the_command_line_are_found() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        let mut nothing = Plan::default();
        assert!(!plan(&host, &wanted(), &mut nothing) && nothing.changes.is_empty());
        for (path, text) in [
            ("/etc/kernel/cmdline", "root=/dev/vda1 ro\n"),
            ("/boot/loader/entries/a.conf", "options root=/dev/vda1\n"),
            ("/boot/loader/entries/b-0-rescue.conf", "options root=/dev/vda1\n"),
            ("/boot/loader/entries/c.conf", "options isolcpus=1 iommu=pt\n"),
            ("/boot/loader/entries/d.conf.bak", "options\n"),
        ] {
            fs::create_dir_all(host.path(path).parent().unwrap()).unwrap();
            fs::write(host.path(path), text).unwrap();
        }
        fs::write(host.path("/boot/loader/entries/e.conf"), [0xff]).unwrap();
        let mut found = Plan::default();
        assert!(plan(&host, &wanted(), &mut found));
        let targets: Vec<_> = found.changes.iter().map(|change| change.target.to_string()).collect();
        assert_eq!(targets, ["/etc/kernel/cmdline", "/boot/loader/entries/a.conf"]);
        assert_eq!(found.changes[0].new, State::content("root=/dev/vda1 ro isolcpus=1 iommu=pt\n"));
        assert!(found.changes.iter().all(|change| change.boot));
        let skipped: Vec<_> = found.skipped.iter().map(|skipped| skipped.target.rsplit('/').next().unwrap()).collect();
        assert_eq!(skipped, ["b-0-rescue.conf", "e.conf"]);
    }
}
