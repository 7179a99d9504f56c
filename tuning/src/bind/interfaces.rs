//! What the network interfaces of a device are used for, as `/proc/net` and `/sys/class/net` tell.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use spinwake::pci::{NetInterface, PciDevice};

use super::is_user_space;
use super::uses::Use;
use crate::host::Host;

/// linux/route.h and linux/ipv6_route.h.
const RTF_UP: u32 = 0x1;
const RTF_REJECT: u32 = 0x200;
const RTF_ANYCAST: u32 = 0x0010_0000;
const RTF_LOCAL: u32 = 0x8000_0000;

/// Uses of the device's interfaces and of all that is stacked on them (VLANs, bonds, bridges).
pub(super) fn uses(host: &Host, device: &PciDevice) -> Vec<Use> {
    let own = device.net_interfaces();
    let mut found: Vec<_> = elsewhere(device, &own).into_iter().collect();
    let names = with_uppers(host, own.iter().map(|interface| interface.name.clone()).collect());
    if names.is_empty() {
        return found;
    }
    let is_ours = |name: &str| names.iter().any(|ours| ours == name);

    let routes = unless_unknown(routes_v4(host), "/proc/net/route cannot be read", &mut found);
    let mut routes_six = unless_unknown(routes_v6(host), "/proc/net/ipv6_route cannot be read", &mut found);
    let locals = unless_unknown(local_v4(host), "/proc/net/fib_trie cannot be read", &mut found);
    let six = unless_unknown(addresses_v6(host), "/proc/net/if_inet6 cannot be read", &mut found);

    // Both defaults of one interface are one loss.
    let defaults = routes.iter().filter(|route| route.is_default()).map(|route| &route.interface);
    let mut defaults: Vec<_> = defaults.chain(routes_six.iter().filter(|r| r.len == 0).map(|r| &r.interface)).collect();
    defaults.sort_unstable();
    defaults.dedup();
    let defaults = defaults.into_iter().filter(|name| is_ours(name));
    let mut uses: Vec<_> = defaults.map(|name| Use::DefaultRoute { interface: name.clone() }).collect();

    let mut addresses: Vec<(String, String)> = Vec::new();
    let mut connected: Vec<&RouteV4> = Vec::new();
    for local in locals {
        // The kernel does not say here whose address it is: it is the interface's through which its network is reached.
        let Some(route) = routes.iter().filter(|r| r.has_on_link(local)).max_by_key(|r| r.len()) else { continue };
        connected.push(route);
        addresses.push((route.interface.clone(), format!("{local}/{}", route.len())));
    }
    let nets: Vec<_> =
        six.iter().map(|(name, address, len)| (name.clone(), network_v6(*address, *len), *len)).collect();
    addresses.extend(six.into_iter().map(|(name, address, len)| (name, format!("{address}/{len}"))));
    uses.extend(
        addresses
            .into_iter()
            .filter(|(name, _)| is_ours(name))
            .map(|(interface, address)| Use::Address { interface, address }),
    );

    // A route that an address brings with it goes without saying.
    let others = routes.iter().filter(|r| !r.is_default() && !connected.contains(r) && is_ours(&r.interface));
    uses.extend(others.map(|r| Use::Route { interface: r.interface.clone(), destination: r.to_string() }));
    routes_six.retain(|r| r.len != 0 && is_ours(&r.interface));
    routes_six.retain(|r| !nets.iter().any(|(name, net, len)| (name, *net, *len) == (&r.interface, r.net, r.len)));
    routes_six.dedup();
    uses.extend(
        routes_six
            .into_iter()
            .map(|r| Use::Route { destination: format!("{}/{}", r.net, r.len), interface: r.interface }),
    );

    for interface in own {
        let NetInterface { name, up, master } = interface;
        if let Some(master) = master {
            uses.push(Use::Port { interface: name, master });
        } else if up {
            uses.push(Use::Up { interface: name });
        }
    }
    uses.append(&mut found);
    uses
}

/// A network device that the kernel drives, and whose interface is not to be seen: its folder then stands empty, because
/// sysfs shows only the interfaces of one's own network namespace.
fn elsewhere(device: &PciDevice, own: &[NetInterface]) -> Option<Use> {
    let driver = device.driver().filter(|driver| !is_user_space(driver))?;
    if !own.is_empty() || !device.class()?.is_network() {
        return None;
    }
    let children = fs::read_dir(device.path()).ok()?.flatten();
    let virtio = children.filter(|child| child.file_name().to_string_lossy().starts_with("virtio"));
    let mut folders = std::iter::once(device.path().to_owned()).chain(virtio.map(|child| child.path()));
    folders.any(|folder| folder.join("net").is_dir()).then_some(Use::Elsewhere { driver })
}

/// These interfaces, and all that stand on them, at whatever height.
fn with_uppers(host: &Host, mut names: Vec<String>) -> Vec<String> {
    let mut next = 0;
    while let Some(name) = names.get(next) {
        let links = host.names(format!("/sys/class/net/{name}"));
        let mut uppers: Vec<_> =
            links.iter().filter_map(|link| link.strip_prefix("upper_")).map(str::to_owned).collect();
        uppers.extend(host.link_name(format!("/sys/class/net/{name}/master")));
        uppers.retain(|upper| !names.contains(upper));
        uppers.dedup();
        names.append(&mut uppers);
        next += 1;
    }
    names
}

fn unless_unknown<T>(read: io::Result<Vec<T>>, what: &str, found: &mut Vec<Use>) -> Vec<T> {
    read.unwrap_or_else(|_| {
        found.push(Use::Unknown { what: what.into() });
        Vec::new()
    })
}

/// One line of `/proc/net/route`: the main table.
#[derive(Debug, PartialEq, Eq)]
struct RouteV4 {
    interface: String,
    net: u32,
    gateway: u32,
    mask: u32,
}

impl RouteV4 {
    fn is_default(&self) -> bool {
        self.net == 0 && self.mask == 0
    }

    fn len(&self) -> u32 {
        self.mask.leading_ones()
    }

    fn has_on_link(&self, address: Ipv4Addr) -> bool {
        self.gateway == 0 && self.mask != 0 && u32::from(address) & self.mask == self.net
    }
}

impl std::fmt::Display for RouteV4 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.net), self.len())
    }
}

fn routes_v4(host: &Host) -> io::Result<Vec<RouteV4>> {
    let text = host.try_read("/proc/net/route")?;
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let interface = fields.next()?.to_owned();
        let mut number = || u32::from_str_radix(fields.next()?, 16).ok();
        // Addresses stand there as the bytes lie in memory, in network order.
        let (net, gateway, flags) = (number()?, number()?, number()?);
        let mask = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        let of = |bytes: u32| u32::from_be_bytes(bytes.to_ne_bytes());
        let route = RouteV4 { interface, net: of(net), gateway: of(gateway), mask: of(mask) };
        (flags & RTF_UP != 0 && flags & RTF_REJECT == 0).then_some(route)
    };
    Ok(text.lines().skip(1).filter_map(line).collect())
}

/// The machine's own addresses, from the trie of its routes: a leaf is named, and its kind stands in the lines below.
fn local_v4(host: &Host) -> io::Result<Vec<Ipv4Addr>> {
    let text = host.try_read("/proc/net/fib_trie")?;
    let mut leaf = None;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(leaf.filter(|address| !address.is_loopback()));
        }
    }
    // The main table and the local one are often one trie, and shown twice.
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// One line of `/proc/net/ipv6_route`: any table.
#[derive(Debug, PartialEq, Eq)]
struct RouteV6 {
    interface: String,
    net: Ipv6Addr,
    len: u8,
}

fn routes_v6(host: &Host) -> io::Result<Vec<RouteV6>> {
    let text = absent_is_empty(host.try_read("/proc/net/ipv6_route"))?;
    let line = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [net, len, _, _, _, _, _, _, flags, interface] = fields[..] else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let net = address_v6(net)?;
        // Link-local and multicast routes come with the interface itself.
        let by_itself = net.is_unicast_link_local() || net.is_multicast();
        if flags & (RTF_REJECT | RTF_LOCAL | RTF_ANYCAST) != 0 || flags & RTF_UP == 0 || by_itself {
            return None;
        }
        Some(RouteV6 { interface: interface.to_owned(), net, len: u8::from_str_radix(len, 16).ok()? })
    };
    Ok(text.lines().filter_map(line).collect())
}

/// Interface, address and prefix length, but for addresses that an interface has by itself.
fn addresses_v6(host: &Host) -> io::Result<Vec<(String, Ipv6Addr, u8)>> {
    let text = absent_is_empty(host.try_read("/proc/net/if_inet6"))?;
    let line = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [address, _, len, _, _, interface] = fields[..] else { return None };
        let address = address_v6(address).filter(|a| !a.is_unicast_link_local() && !a.is_loopback())?;
        Some((interface.to_owned(), address, u8::from_str_radix(len, 16).ok()?))
    };
    Ok(text.lines().filter_map(line).collect())
}

/// A kernel without IPv6 has no such file.
fn absent_is_empty(read: io::Result<String>) -> io::Result<String> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

fn address_v6(digits: &str) -> Option<Ipv6Addr> {
    (digits.len() == 32).then(|| u128::from_str_radix(digits, 16).ok())?.map(Ipv6Addr::from)
}

fn network_v6(address: Ipv6Addr, len: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0);
    Ipv6Addr::from(u128::from(address) & mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::fake::Fake;

    const BDF: &str = "0000:01:00.0";

    const ROUTES: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0000000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
eth0\t0000A8C0\t0100000A\t0003\t0\t0\t100\t0000FFFF\t0\t0\t0
eth1\t0000010A\t00000000\t0001\t0\t0\t100\t0000FFFF\t0\t0\t0
";
    const TRIE: &str = "\
Main:
  +-- 0.0.0.0/0 3 0 4
     +-- 10.0.0.0/24 2 0 2
        |-- 10.0.0.0
           /24 link UNICAST
        |-- 10.0.0.7
           /32 host LOCAL
        |-- 10.0.0.255
           /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
Local:
        |-- 10.0.0.7
           /32 host LOCAL
";

    /// A card with the interface eth0, and what the kernel says of the network.
    fn card(flags: &str) -> Fake {
        let fake = Fake::new();
        fake.device(BDF, "0x020000", Some("igb"), Some(1));
        fake.put(&format!("/sys/bus/pci/devices/{BDF}/net/eth0/flags"), flags);
        for file in ["route", "fib_trie"] {
            fake.put(&format!("/proc/net/{file}"), "");
        }
        fake
    }

    fn found(fake: &Fake) -> Vec<String> {
        let device = fake.host().sysfs().device(BDF.parse().unwrap()).unwrap();
        uses(fake.host(), &device).iter().map(Use::to_string).collect()
    }

    #[test]
    fn an_interface_that_is_down_is_no_use() {
        assert!(found(&card("0x1002")).is_empty());
        assert_eq!(found(&card("0x1003")), ["eth0 is up"]);
    }

    #[test]
    fn addresses_and_routes_are_found_the_default_route_first() {
        let fake = card("0x1003");
        fake.put("/proc/net/route", ROUTES);
        fake.put("/proc/net/fib_trie", TRIE);
        fake.put(
            "/proc/net/if_inet6",
            "20010db8000000000000000000000007 02 40 00 80     eth0\n\
             fe800000000000000000000000000007 02 40 20 80     eth0\n\
             20010db8000000000000000000000008 03 40 00 80     eth1\n",
        );
        let six = |net: &str, len, flags, name| {
            let none = "00000000000000000000000000000000";
            format!("{net} {len} {none} 00 {none} 00000100 00000001 00000000 {flags} {name}\n")
        };
        let routes = [
            six("20010db8000000000000000000000000", "40", "00000001", "    eth0"),
            six("20010db8000000000000000000000007", "80", "80200001", "    eth0"),
            six("20010db8ffff00000000000000000000", "30", "00000003", "    eth0"),
            six("fe800000000000000000000000000000", "40", "00000001", "    eth0"),
            six("00000000000000000000000000000000", "00", "00000003", "    eth0"),
            six("00000000000000000000000000000000", "00", "00200200", "      lo"),
        ];
        fake.put("/proc/net/ipv6_route", &routes.concat());
        let expected = [
            "eth0 has the default route",
            "eth0 has the address 10.0.0.7/24",
            "eth0 has the address 2001:db8::7/64",
            "eth0 has a route to 192.168.0.0/16",
            "eth0 has a route to 2001:db8:ffff::/48",
            "eth0 is up",
        ];
        assert_eq!(found(&fake), expected);
    }

    #[test]
    fn what_stands_on_an_interface_counts() {
        let fake = card("0x1003");
        fake.link("/sys/class/net/eth0", &format!("/sys/bus/pci/devices/{BDF}/net/eth0"));
        for link in ["upper_br0", "master"] {
            fake.link(&format!("/sys/bus/pci/devices/{BDF}/net/eth0/{link}"), "/sys/class/net/br0");
        }
        fake.put("/sys/class/net/br0/upper_br0.5/flags", "");
        fake.put("/proc/net/route", &ROUTES.replace("eth0", "br0.5"));
        fake.put("/proc/net/fib_trie", TRIE);
        let expected = [
            "br0.5 has the default route",
            "br0.5 has the address 10.0.0.7/24",
            "br0.5 has a route to 192.168.0.0/16",
            "eth0 is a port of br0",
        ];
        assert_eq!(found(&fake), expected);
    }

    #[test]
    fn an_interface_in_another_namespace_is_missed() {
        let fake = Fake::new();
        fake.device(BDF, "0x020000", Some("igb"), Some(1));
        fake.put(&format!("/sys/bus/pci/devices/{BDF}/net/.keep"), "");
        std::fs::remove_file(fake.host().path(format!("/sys/bus/pci/devices/{BDF}/net/.keep"))).unwrap();
        assert_eq!(found(&fake), ["igb's interface is in another network namespace"]);
    }

    #[test]
    fn what_cannot_be_read_is_unknown_and_what_is_malformed_is_skipped() {
        let fake = card("0x1002");
        fs::remove_file(fake.host().path("/proc/net/route")).unwrap();
        assert_eq!(found(&fake), ["unknown: /proc/net/route cannot be read"]);
        for file in ["route", "fib_trie", "if_inet6", "ipv6_route"] {
            fake.put(&format!("/proc/net/{file}"), "eth0 \u{fffd}\n\neth0 zz zz zz\n|-- x\n/32 host LOCAL\n");
        }
        assert!(found(&fake).is_empty());
    }
}
