//! `manual` and `completions`: made from the same description of the options that parses them.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use clap::Command;
use clap_complete::Shell;
use serde::Serialize;

use crate::output::Report;

/// Writes the manual's pages, one for each command
#[derive(Debug, Clone, clap::Args)]
pub struct ManualArgs {
    /// The folder to write them to, made where it is missing: /usr/local/share/man/man1, say
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

/// Prints a shell's completions
#[derive(Debug, Clone, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// The manual could not be written.
#[derive(Debug, thiserror::Error)]
#[error("the manual's pages cannot be written to {}: {source}", folder.display())]
pub struct ManualError {
    folder: PathBuf,
    source: io::Error,
}

/// The manual's pages.
#[derive(Debug, Serialize)]
pub struct Manual {
    /// Where they are.
    pub folder: PathBuf,
    /// Their names.
    pub pages: Vec<String>,
}

/// A shell's completions.
#[derive(Debug, Serialize)]
pub struct Completions {
    /// The shell.
    pub shell: String,
    /// A script for it.
    pub script: String,
}

/// Writes a page for the program and for each of its commands.
///
/// # Errors
///
/// When the folder cannot be made or written to.
pub fn manual(args: &ManualArgs, program: &Command) -> Result<Manual, ManualError> {
    let folder = args.folder.clone();
    let mut pages = Vec::new();
    let written = fs::create_dir_all(&folder).and_then(|()| {
        // Building gives each command its full name, as in `spinwake-tune-bind`.
        let mut program = program.clone().disable_help_subcommand(true);
        program.build();
        write_pages(&program, &folder, &mut pages)
    });
    match written {
        Ok(()) => Ok(Manual { folder, pages }),
        Err(source) => Err(ManualError { folder, source }),
    }
}

fn write_pages(command: &Command, folder: &std::path::Path, pages: &mut Vec<String>) -> io::Result<()> {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        write_pages(inner, folder, pages)?;
    }
    let page = clap_mangen::Man::new(command.clone());
    let name = page.get_filename();
    let mut text = Vec::new();
    page.render(&mut text)?;
    fs::write(folder.join(&name), text)?;
    pages.push(name);
    Ok(())
}

/// The completions of a shell.
pub fn completions(args: &CompletionsArgs, program: &Command) -> Completions {
    let mut program = program.clone();
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    Completions { shell: args.shell.to_string(), script: String::from_utf8_lossy(&script).trim_end().to_owned() }
}

impl Report for Manual {}

impl fmt::Display for Manual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages in {}: {}", self.pages.len(), self.folder.display(), self.pages.join(" "))
    }
}

impl Report for Completions {}

impl fmt::Display for Completions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.script)
    }
}
