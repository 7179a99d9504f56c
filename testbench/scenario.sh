# shellcheck shell=bash
# What the guest scenarios share: two namespaces of the kernel, cabled to the two NICs of a forwarder.
# Sourced, inside a guest started by testbench/guest, which has these devices (or others in their places):
#
#   namespace a: e1000e 03:00.0 ── cable ── igb 01:00.0 ── forwarder ── igb 02:00.0 ── cable ── e1000e 04:00.0 :namespace b
#
# A forwarder is a program in testbench/forwarders, called in two ways:
#   NAME run PORT_A PORT_B QUEUES LOG_DIR   becomes the forwarder (exec), which ends at SIGTERM and may write in LOG_DIR
#   NAME queues LOG_DIR                     prints "PORT QUEUE FRAMES_RECEIVED" lines of the run that ended

port_a=0000:01:00.0
port_b=0000:02:00.0
nic_a=0000:03:00.0
nic_b=0000:04:00.0
queues=${SPINWAKE_QUEUES:-4}
hugepages=256
checks_failed=0
forwarder_pid=""

# Reports a check: "ok NAME" or "not ok NAME: why". The host counts these lines.
ok() { echo "ok $scenario: $*"; }
not_ok() {
    local name=$1
    shift
    echo "not ok $scenario: $name: $*"
    checks_failed=$((checks_failed + 1))
}

# A scenario that ends before its time says where.
trap 'not_ok "line $LINENO" "failed: $BASH_COMMAND"' ERR

# Runs the command again and again until it succeeds, or SECONDS have gone by.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" > /dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

in_a() { ip netns exec a "$@"; }
in_b() { ip netns exec b "$@"; }

# Hands a PCI device to vfio-pci, whatever drives it now.
bind_vfio() {
    local device=/sys/bus/pci/devices/$1
    echo vfio-pci > "$device/driver_override"
    [ ! -e "$device/driver" ] || echo "$1" > "$device/driver/unbind"
    echo "$1" > /sys/bus/pci/drivers_probe
    [ "$(basename "$(readlink "$device/driver")")" = vfio-pci ]
}

# The name of a PCI device's network interface; a virtio device has one more device between the two.
interface_of() {
    compgen -G "/sys/bus/pci/devices/$1/net/*" | sed 's/.*\///' ||
        compgen -G "/sys/bus/pci/devices/$1/virtio*/net/*" | sed 's/.*\///'
}

# Gives a kernel NIC to a namespace as "wire", with one address.
wire_namespace() {
    local namespace=$1 nic=$2 address=$3 name
    wait_for 30 interface_of "$nic"
    name=$(interface_of "$nic")
    ip netns add "$namespace"
    ip link set "$name" down
    ip link set "$name" name wire netns "$namespace"
    ip netns exec "$namespace" ip address add "$address" dev wire
    ip netns exec "$namespace" ip link set lo up
    ip netns exec "$namespace" ip link set wire up
}

set_up() {
    [ -c /dev/vfio/vfio ] || modprobe vfio-pci
    modprobe vfio_iommu_type1
    modprobe -a e1000e virtio_net 8021q
    bind_vfio "$port_a"
    bind_vfio "$port_b"
    echo "$hugepages" > /proc/sys/vm/nr_hugepages
    mkdir -p /dev/hugepages
    mountpoint -q /dev/hugepages || mount -t hugetlbfs none /dev/hugepages
    wire_namespace a "$nic_a" 10.9.0.1/24
    wire_namespace b "$nic_b" 10.9.0.2/24
    trap tear_down EXIT
}

tear_down() {
    # A subshell that ends early must not end everything.
    [ "$BASHPID" = "$$" ] || return 0
    # shellcheck disable=SC2046 # a list of process ids
    { kill -9 $(jobs -p) && wait; } 2> /dev/null || true
    ip netns delete a || true
    ip netns delete b || true
}

start_forwarder() {
    "$forwarder" run "$port_a" "$port_b" "$queues" "$log_dir" > "$log_dir/$forwarder_name.log" 2>&1 < /dev/null &
    forwarder_pid=$!
}

forwarder_runs() { kill -0 "$forwarder_pid" 2> /dev/null; }

# Ends the forwarder with a signal and takes its exit code.
end_forwarder() {
    local code=0
    kill "-$1" "$forwarder_pid" 2> /dev/null || true
    wait "$forwarder_pid" 2> /dev/null || code=$?
    return "$code"
}

frames_pass() { in_a ping -q -c 1 -W 1 10.9.0.2; }

# Waits until frames pass, or the forwarder ends, or the time is over.
wait_for_traffic() {
    local deadline=$((SECONDS + $1))
    until frames_pass > /dev/null 2>&1; do
        forwarder_runs || { echo "the forwarder ended: $(tail -n 5 "$log_dir/$forwarder_name.log" | tr '\n' ' ')"; return 1; }
        [ "$SECONDS" -lt "$deadline" ] || { echo "no frame passed within $1 s"; return 1; }
    done
}
