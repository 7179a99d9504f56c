# shellcheck shell=bash
# What the bench's host-side scripts share: where things are, and what is missing.
# Sourced; expects bash, and leaves the caller's options alone.

bench_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Cargo's own output directory, so that a clone holds everything the bench makes.
bench_target=${CARGO_TARGET_DIR:-$bench_root/target}
bench_dir=$bench_target/testbench
bench_venv=$bench_dir/venv

# An ordinary user of Debian has no sbin in PATH.
PATH=$PATH:/usr/sbin:/sbin

# Prints "PROGRAM: MESSAGE" and exits with CODE.
die() {
    local code=$1
    shift
    echo "${0##*/}: $*" >&2
    exit "$code"
}

# guest_tune NAME: builds spinwake-tune for a scenario's guest and prints the folder that it is in, which is that scenario's own:
# another one may build it anew while the guest runs it.
guest_tune() {
    local folder=$bench_dir/bin/$1
    cargo build --quiet --manifest-path "$bench_root/Cargo.toml" -p spinwake-tune
    mkdir -p "$folder"
    cp --remove-destination "$bench_target/debug/spinwake-tune" "$folder/"
    echo "$folder"
}

# The newest installed kernel that can be read and has the modules a guest needs. (Debian's cloud kernels have no VFIO.)
guest_kernel() {
    local image release
    for image in $(printf '%s\n' /boot/vmlinuz-* | sort -rV); do
        release=${image#/boot/vmlinuz-}
        if [ -r "$image" ] && compgen -G "/lib/modules/$release/kernel/drivers/vfio/pci/vfio-pci.ko*" > /dev/null &&
            compgen -G "/lib/modules/$release/kernel/drivers/net/ethernet/intel/igb/igb.ko*" > /dev/null; then
            echo "$image"
            return
        fi
    done
}

guest_qemu() {
    command -v qemu-system-x86_64 || true
}

guest_vng() {
    if [ -x "$bench_venv/bin/vng" ]; then echo "$bench_venv/bin/vng"; else command -v vng || true; fi
}

# What a guest lacks on this machine, as one phrase; nothing when it can run.
guest_missing() {
    local lacks=() command
    [ "$(uname -m)" = x86_64 ] || lacks+=("an x86-64 machine")
    [ -n "$(guest_kernel)" ] || lacks+=("a readable kernel in /boot with vfio-pci and igb modules (Debian: linux-image-amd64)")
    if [ -z "$(guest_qemu)" ]; then
        lacks+=("qemu-system-x86_64 (Debian: qemu-system-x86)")
    elif ! qemu_has_igb; then
        lacks+=("a QEMU with the igb model (8.0 or newer; Debian: from the backports suite)")
    fi
    for command in busybox file ip python3; do # virtme-ng and the scenarios call them
        command -v "$command" > /dev/null || lacks+=("$command")
    done
    [ -n "$(guest_vng)" ] || lacks+=("virtme-ng (from PyPI)")
    local IFS=';'
    echo "${lacks[*]}"
}

qemu_has_igb() {
    qemu-system-x86_64 -device igb,help > /dev/null 2>&1
}

# The command that runs another one in a network namespace of its own; nothing where it cannot be had.
own_network() {
    local command=(unshare --net)
    [ "$(id -u)" = 0 ] || command+=(--map-root-user)
    # An end of a cable is a tap device, and a cable a bridge.
    "${command[@]}" sh -c 'ip tuntap add probe mode tap && ip link add cable type bridge' > /dev/null 2>&1 || return 0
    echo "${command[@]}"
}

# The back end of a network device, id and tap named $1, that joins the cable its name says (see testbench/cable).
tap_end() {
    echo "-netdev tap,id=$1,ifname=$1,queues=4,vhost=off,script=$bench_root/testbench/cable,downscript=no"
}

# Devices for a guest besides the default ones: two igb on one cable, 0000:05:00.0 and 0000:06:00.0, for whoever drives
# both ends.
# shellcheck disable=SC2034 # for those who source this
guest_pair="-netdev hubport,id=c0,hubid=2 -device pcie-root-port,id=rp5,slot=5,addr=0x15 -device igb,netdev=c0,bus=rp5
-netdev hubport,id=c1,hubid=2 -device pcie-root-port,id=rp6,slot=6,addr=0x16 -device igb,netdev=c1,bus=rp6"

# Two pairs of virtio-net, each pair on one cable: a rich one, 0000:07:00.0 and 0000:08:00.0, and one with as little as a
# device may have, 0000:09:00.0 and 0000:0a:00.0.
virtio_net="virtio-net-pci,disable-legacy=on,iommu_platform=on"
# Four pairs of queues, where its back end has them.
virtio_full="$virtio_net,packed=on,mq=on,vectors=10"
virtio_poor="$virtio_net,mrg_rxbuf=off,event_idx=off,indirect_desc=off,ctrl_vq=off,ctrl_rx=off,ctrl_vlan=off,ctrl_mac_addr=off,ctrl_guest_offloads=off,guest_announce=off,queue_reset=off,vectors=2"
# shellcheck disable=SC2034
guest_virtio="-netdev hubport,id=d0,hubid=3 -device pcie-root-port,id=rp7,slot=7,addr=0x17 -device $virtio_net,packed=on,netdev=d0,bus=rp7
-netdev hubport,id=d1,hubid=3 -device pcie-root-port,id=rp8,slot=8,addr=0x18 -device $virtio_net,packed=on,in_order=on,netdev=d1,bus=rp8
-netdev hubport,id=e0,hubid=4 -device pcie-root-port,id=rp9,slot=9,addr=0x19 -device $virtio_poor,netdev=e0,bus=rp9
-netdev hubport,id=e1,hubid=4 -device pcie-root-port,id=rp10,slot=10,addr=0x1a -device $virtio_poor,netdev=e1,bus=rp10"

# A third pair, on a cable that carries all that virtio has: four pairs of queues, checksums and large frames left to the other
# end. 0000:0b:00.0, and 0000:0c:00.0, which spreads flows by a hash that it is told.
# shellcheck disable=SC2034
guest_taps="$(tap_end f0) -device pcie-root-port,id=rp11,slot=11,addr=0x1b -device $virtio_full,netdev=f0,bus=rp11
$(tap_end f1) -device pcie-root-port,id=rp12,slot=12,addr=0x1c -device $virtio_full,rss=on,netdev=f1,bus=rp12"

# A disk, 0000:05:00.0, made of the drive named "disk"; and two e1000 behind a bridge of conventional PCI, which the IOMMU
# cannot tell apart.
# shellcheck disable=SC2034
guest_disk="-device pcie-root-port,id=rp5,slot=5,addr=0x15 -device nvme,serial=spinwake,drive=disk,bus=rp5"
# shellcheck disable=SC2034
guest_group="-device pcie-pci-bridge,id=pci,addr=0x1e -device e1000,bus=pci,addr=1 -device e1000,bus=pci,addr=2"
