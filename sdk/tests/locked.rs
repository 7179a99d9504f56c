//! Memory of a peer in a process that keeps all of its own in place. One test, alone in its process: what it locks is all of that.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use spinwake::cpu;
use spinwake::mem::PeerRegion;
use spinwake::sys::mem::Memfd;

const LEN: usize = 64 << 20;

#[test]
fn no_page_of_a_peer_is_taken_before_it_is_touched() {
    if let Err(error) = cpu::lock_memory() {
        eprintln!("skipped: {error}");
        return;
    }
    let memfd = Memfd::new(c"sparse", LEN, None).unwrap();
    let region = PeerRegion::map(0, 0, LEN as u64, memfd.as_fd(), 0).unwrap();
    let file = File::from(memfd.as_fd().try_clone_to_owned().unwrap());
    assert_eq!(file.metadata().unwrap().blocks(), 0, "{region:?}");
}
