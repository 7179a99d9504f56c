//! Another process, for what one alone cannot show.

use super::*;

/// This test program once more, to do `what` with the device, with a memlock limit in KiB where it is not zero.
pub(crate) fn child(what: &str, bdf: Bdf, memlock_kib: u32) -> Command {
    let limit = if memlock_kib == 0 { String::new() } else { format!("ulimit -l {memlock_kib} && ") };
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(format!("{limit}exec \"$0\" --exact other::guest_other_process --nocapture"));
    command.arg(std::env::current_exe().unwrap());
    command.env("SPINWAKE_TEST_CHILD", format!("{what} {bdf}")).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// The rest of the first line that has `says: ` in it, of those that a child prints.
pub(crate) fn said(child: &mut Child) -> String {
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        if let Some((_, text)) = line.split_once("says: ") {
            return text.to_owned();
        }
    }
    panic!("the other process said nothing");
}

/// What the other process does; nothing when it is run as an ordinary test.
#[test]
fn guest_other_process() {
    let Ok(task) = std::env::var("SPINWAKE_TEST_CHILD") else { return };
    let (what, bdf) = task.split_once(' ').unwrap();
    let device = match VfioDevice::open(bdf.parse().unwrap()) {
        Ok(device) => device,
        Err(error) => return println!("says: {error}"),
    };
    if what == "hold" {
        println!("says: opened");
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let memory = Mapping::anonymous(1 << 20).unwrap();
    let (va, len) = (memory.as_ptr().as_ptr(), memory.len());
    let mapping = spinwake::device::Mapping { va, len, iova: 0x10_0000, fd: None };
    // SAFETY: the device is closed before the memory is unmapped, and nobody touches the memory.
    match unsafe { device.iommu().map(mapping) } {
        Ok(()) => println!("says: mapped"),
        Err(error) => println!("says: {error}"),
    }
    drop(device);
}
