//! `spinwake-tune`: shows what a machine offers a polled-mode driver, and binds devices.

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use spinwake::mem;
use spinwake::pci::{Bdf, Sysfs};
use spinwake_tune::{bind, devices};

/// Shows what a machine offers a polled-mode driver, and binds devices.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the network devices: who drives them, and their IOMMU groups
    Devices,
    /// Shows the hugepages there are, by size and NUMA node
    Hugepages,
    /// Binds a network device to vfio-pci, so that programs can drive it
    Bind {
        /// Its address, as in 0000:01:00.0
        bdf: Bdf,
        /// Even if its network interface is in use
        #[arg(long)]
        force: bool,
    },
    /// Gives a network device back to the kernel's own driver
    Unbind {
        /// Its address, as in 0000:01:00.0
        bdf: Bdf,
    },
}

fn main() -> ExitCode {
    match run(&Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed; there is nobody left to tell then.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(command: &Command) -> Result<(), Box<dyn Error>> {
    let sysfs = Sysfs::default();
    let mut out = io::stdout().lock();
    match *command {
        Command::Devices => {
            for row in devices::network_devices(&sysfs)? {
                writeln!(out, "{row}")?;
            }
        }
        Command::Hugepages => {
            for count in mem::all_hugepages(Path::new("/")) {
                let place = count.node.map_or_else(|| "in all".into(), |node| format!("on node {node}"));
                writeln!(out, "{} pages {place}: {count}", count.size)?;
            }
        }
        Command::Bind { bdf, force } => {
            bind::bind(&sysfs, bdf, force)?;
            writeln!(out, "{bdf} is bound to vfio-pci")?;
        }
        Command::Unbind { bdf } => match bind::unbind(&sysfs, bdf)? {
            Some(driver) => writeln!(out, "{bdf} is bound to {driver}")?,
            None => writeln!(out, "{bdf} is bound to no driver: the kernel has none for it")?,
        },
    }
    Ok(())
}
