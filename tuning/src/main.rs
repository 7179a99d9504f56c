//! `spinwake-tune`: says what a machine offers a polled-mode driver and what it costs, tunes and measures it, binds devices.

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use spinwake_tune::host::Host;
use spinwake_tune::output::{Report, tell};
use spinwake_tune::{apply, bind, check, devices, hugepages, jitter, manual, page, revert, wake, warnings};

/// Says what a machine offers a polled-mode driver and what it costs, tunes and measures it, and binds devices.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Tell it as one JSON object
    #[arg(long, global = true)]
    json: bool,

    /// The machine whose files lie below DIR
    #[arg(long, global = true, hide = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says what costs latency on this machine or keeps drivers from running, and what mends it
    Check(check::Args),
    /// Brings the machine to what a profile says; every change is written down before it is made
    Apply(apply::Args),
    /// Takes back what apply has changed
    Revert(revert::Args),
    Devices(devices::Args),
    Bind(bind::Args),
    Unbind(bind::unbind::Args),
    Permit(bind::permit::Args),
    Vfs(devices::vfs::Args),
    Hugepages(hugepages::Args),
    /// Measures what takes a core from a worker: how often, how long, and who
    Jitter(jitter::Args),
    /// Measures what sleeping costs here, and recommends a wait policy
    Wake(wake::Args),
    /// Writes all of it, and the machine's description, as one HTML page
    Report(page::Args),
    Manual(manual::ManualArgs),
    Completions(manual::CompletionsArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    warnings::show();
    match run(&args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Standard error may be closed; there is nobody left to tell then.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs the command, tells what it reports, and returns the exit code.
fn run(args: &Args) -> Result<u8, Box<dyn Error>> {
    let host = Host::at(&args.root);
    match &args.command {
        Command::Check(of) => show(args, &check::run(of, &host)?),
        Command::Apply(of) => show(args, &apply::run(of, &host)?),
        Command::Revert(of) => show(args, &revert::run(of, &host)?),
        Command::Devices(of) => show(args, &devices::run(of, &host)?),
        Command::Bind(of) => show(args, &bind::run(of, &host)?),
        Command::Unbind(of) => show(args, &bind::unbind::run(of, &host)?),
        Command::Permit(of) => show(args, &bind::permit::run(of, &host)?),
        Command::Vfs(of) => show(args, &devices::vfs::run(of, &host)?),
        Command::Hugepages(of) => show(args, &hugepages::run(of, &host)?),
        Command::Jitter(of) => show(args, &jitter::run(of, &host)?),
        Command::Wake(of) => show(args, &wake::run(of, &host)?),
        Command::Report(of) => show(args, &page::run(of, &host)?),
        Command::Manual(of) => show(args, &manual::manual(of, &Args::command())?),
        Command::Completions(of) => show(args, &manual::completions(of, &Args::command())),
    }
}

/// Tells a report. A reader that has gone away is no failure: what was to be done is done.
fn show(args: &Args, report: &impl Report) -> Result<u8, Box<dyn Error>> {
    match tell(report, args.json, io::stdout().lock()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(report.exit_code()),
    }
}
