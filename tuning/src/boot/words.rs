//! The kernel's command line as words.

/// Parameters of which both stand for one thing, told in pairs: who sets one replaces all.
const PAIRED: [&str; 3] = ["hugepages", "hugepagesz", "default_hugepagesz"];

/// What `line` becomes when it shall have all of `wanted`: parameters of the same name are replaced, all others stay as they
/// are, in their order. What already stands there in the wanted form stays in its place.
pub(super) fn merge(line: &str, wanted: &[String]) -> String {
    let words = split(line);
    // What comes after a lone -- is for init (the kernel's admin-guide/kernel-parameters).
    let end = words.iter().position(|word| *word == "--").unwrap_or(words.len());
    let (mut kernel, init) = (words[..end].to_vec(), &words[end..]);
    let mut done: Vec<String> = Vec::new();
    for key in wanted.iter().map(|word| key(word)) {
        if done.contains(&key) {
            continue;
        }
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).filter(|word| self::key(word) == key).collect();
        let there: Vec<&str> = kernel.iter().copied().filter(|word| self::key(word) == key).collect();
        if !(there == wanted || covers(&there, &wanted)) {
            kernel.retain(|word| self::key(word) != key);
            kernel.extend(wanted);
        }
        done.push(key);
    }
    [kernel.as_slice(), init].concat().join(" ")
}

/// Words of which `merge` changes the line, as shell patterns that match each parameter to be replaced.
pub(super) fn patterns(wanted: &[String]) -> Vec<String> {
    let mut patterns = Vec::new();
    for word in wanted {
        let name = word.split('=').next().unwrap_or(word);
        let names = if PAIRED.contains(&name) { PAIRED.to_vec() } else { vec![name] };
        for name in names {
            // The kernel takes - and _ in names for the same.
            let name = name.replace(['-', '_'], "[-_]");
            for pattern in [name.clone(), format!("{name}=*")] {
                if !patterns.contains(&pattern) {
                    patterns.push(pattern);
                }
            }
        }
    }
    patterns
}

/// The name that a parameter is known by.
fn key(word: &str) -> String {
    let name = word.split('=').next().unwrap_or(word).replace('-', "_");
    if PAIRED.contains(&name.as_str()) { PAIRED[0].into() } else { name }
}

/// Whether an IOMMU's options, a list, already have what is wanted.
fn covers(there: &[&str], wanted: &[&str]) -> bool {
    let (&[there], &[wanted]) = (there, wanted) else { return false };
    let (Some((name, there)), Some((_, wanted))) = (there.split_once('='), wanted.split_once('=')) else {
        return false;
    };
    ["intel_iommu", "amd_iommu"].contains(&name) && wanted.split(',').all(|one| there.split(',').any(|two| one == two))
}

/// The words of a command line. White space within double quotes is part of a word.
fn split(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut start, mut in_quotes) = (None, false);
    for (at, c) in line.char_indices() {
        if c.is_whitespace() && !in_quotes {
            words.extend(start.take().map(|start| &line[start..at]));
            continue;
        }
        in_quotes ^= c == '"';
        start.get_or_insert(at);
    }
    words.extend(start.map(|start| &line[start..]));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(line: &str, wanted: &[&str]) -> String {
        let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
        let once = merge(line, &wanted);
        assert_eq!(merge(&once, &wanted), once, "a second time changes nothing");
        once
    }

    #[test]
    fn parameters_of_one_name_are_replaced_and_others_stay() {
        assert_eq!(
            merged("root=/dev/sda1 isolcpus=3 quiet  isolcpus=4", &["isolcpus=managed_irq,domain,1", "nohz_full=1"]),
            "root=/dev/sda1 quiet isolcpus=managed_irq,domain,1 nohz_full=1"
        );
        assert_eq!(merged("", &["quiet"]), "quiet");
        assert_eq!(merged("quiet nohz_full=1 ro", &["nohz_full=1"]), "quiet nohz_full=1 ro", "right already");
        assert_eq!(merged("skew-tick=0 ro", &["skew_tick=1"]), "ro skew_tick=1", "- is _");
        assert_eq!(merged("dyndbg=\"file a +p\" ro", &["x=1"]), "dyndbg=\"file a +p\" ro x=1");
        assert_eq!(merged("ro -- single isolcpus=9", &["isolcpus=1"]), "ro isolcpus=1 -- single isolcpus=9");
        assert_eq!(merged("isolcpus_x=1 xisolcpus=2", &["isolcpus=1"]), "isolcpus_x=1 xisolcpus=2 isolcpus=1");
    }

    #[test]
    fn pairs_and_lists_are_understood() {
        let pages = ["hugepagesz=1G", "hugepages=4", "hugepagesz=2M", "hugepages=512"];
        assert_eq!(merged("hugepages=9 ro hugepagesz=1G", &pages), format!("ro {}", pages.join(" ")));
        assert_eq!(merged("intel_iommu=on,sm_on", &["intel_iommu=on"]), "intel_iommu=on,sm_on");
        assert_eq!(merged("intel_iommu=off", &["intel_iommu=on"]), "intel_iommu=on");
    }
}
