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

# Devices for a guest besides the default ones: two igb on one cable, 0000:05:00.0 and 0000:06:00.0, for whoever drives
# both ends.
# shellcheck disable=SC2034 # for those who source this
guest_pair="-netdev hubport,id=c0,hubid=2 -device pcie-root-port,id=rp5,slot=5,addr=0x15 -device igb,netdev=c0,bus=rp5
-netdev hubport,id=c1,hubid=2 -device pcie-root-port,id=rp6,slot=6,addr=0x16 -device igb,netdev=c1,bus=rp6"
