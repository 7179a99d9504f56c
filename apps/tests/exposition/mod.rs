//! A strict reader of OpenMetrics text (OpenMetrics 1.0.0, section "Text format"), as much of it as counters and histograms
//! need: it panics at whatever a scraper might refuse or misread.

use std::collections::{BTreeMap, BTreeSet};

type Labels = BTreeMap<String, String>;

/// All series of a text.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    series: BTreeMap<(String, Labels), f64>,
}

/// The metric family that lines belong to.
#[derive(Debug)]
struct Family {
    name: String,
    kind: Option<String>,
    unit: Option<String>,
    help: bool,
    samples: bool,
}

impl Exposition {
    /// Reads a whole text.
    pub(crate) fn parse(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("the end is marked");
        assert!(body.is_empty() || body.ends_with('\n'), "the last line has no end");
        let mut all = Self::default();
        let mut names = BTreeSet::new();
        let mut family: Option<Family> = None;
        for line in body.split_terminator('\n') {
            match line.strip_prefix("# ") {
                Some(descriptor) => {
                    let (keyword, rest) = descriptor.split_once(' ').expect(line);
                    let (name, value) = rest.split_once(' ').expect(line);
                    let next = match family.take() {
                        Some(family) if family.name == name => family,
                        _ => {
                            assert!(names.insert(name.to_owned()), "{name} is described twice");
                            check_name(name);
                            Family { name: name.into(), kind: None, unit: None, help: false, samples: false }
                        }
                    };
                    family = Some(next.describe(keyword, value, line));
                }
                None => {
                    assert!(!line.starts_with('#'), "{line}");
                    let family = family.as_mut().unwrap_or_else(|| panic!("{line} belongs to nothing"));
                    family.samples = true;
                    let (name, labels, value) = sample(line);
                    family.check(&name, &labels, value, line);
                    assert!(all.series.insert((name, labels), value).is_none(), "{line} is there twice");
                }
            }
        }
        all.check_histograms();
        all
    }

    /// The value of a series.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        self.series.get(&(name.to_owned(), labels)).copied()
    }

    /// Buckets must grow with their bounds, up to the count.
    fn check_histograms(&self) {
        let mut buckets: BTreeMap<(String, Labels), Vec<(f64, f64)>> = BTreeMap::new();
        for ((name, labels), &value) in &self.series {
            if let Some(base) = name.strip_suffix("_bucket") {
                let mut labels = labels.clone();
                let bound = number(&labels.remove("le").expect("a bucket has a bound"));
                buckets.entry((base.into(), labels)).or_default().push((bound, value));
            }
        }
        for ((base, labels), mut buckets) in buckets {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.windows(2).all(|two| two[0].1 <= two[1].1), "{base} {labels:?}: {buckets:?}");
            let count = self.series[&(format!("{base}_count"), labels.clone())];
            assert_eq!(buckets.last().copied(), Some((f64::INFINITY, count)), "{base} {labels:?}");
            assert!(self.series[&(format!("{base}_sum"), labels)] >= 0.0, "{base}");
        }
    }
}

impl Family {
    fn describe(mut self, keyword: &str, value: &str, line: &str) -> Self {
        assert!(!self.samples, "{line} comes after its samples");
        match keyword {
            "HELP" => assert!(!std::mem::replace(&mut self.help, true), "{line}: a second one"),
            "TYPE" => {
                assert!(["counter", "histogram"].contains(&value), "{line}");
                assert!(self.kind.replace(value.into()).is_none(), "{line}: a second one");
            }
            "UNIT" => {
                assert!(self.name.ends_with(&format!("_{value}")), "{line}: not how the name ends");
                assert!(self.unit.replace(value.into()).is_none(), "{line}: a second one");
            }
            _ => panic!("{line}"),
        }
        self
    }

    fn check(&self, name: &str, labels: &Labels, value: f64, line: &str) {
        let suffix = name.strip_prefix(self.name.as_str()).unwrap_or_else(|| panic!("{line} is not {}", self.name));
        let kind = self.kind.as_deref().unwrap_or_else(|| panic!("{line} has no type"));
        match (kind, suffix) {
            ("counter", "_total") | ("histogram", "_sum" | "_count") => assert!(!labels.contains_key("le"), "{line}"),
            ("histogram", "_bucket") => assert!(labels.contains_key("le"), "{line}"),
            _ => panic!("{line} in a {kind}"),
        }
        assert!(value >= 0.0 && value.is_finite(), "{line}");
    }
}

/// `name{label="value",...} number`
fn sample(line: &str) -> (String, Labels, f64) {
    let end = line.find(['{', ' ']).expect(line);
    let (name, mut rest) = line.split_at(end);
    check_name(name);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        let mut more = true;
        while more {
            let (key, after) = rest.split_once("=\"").expect(line);
            check_name(key);
            let (value, after) = quoted(after, line);
            assert!(labels.insert(key.into(), value).is_none(), "{key} twice in {line}");
            more = after.starts_with(',');
            rest = after.strip_prefix([',', '}']).expect(line);
        }
    }
    let value = rest.strip_prefix(' ').expect(line);
    (name.into(), labels, number(value))
}

/// What stands before the closing quote, and what comes after it.
fn quoted<'a>(text: &'a str, line: &str) -> (String, &'a str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, char @ ('\\' | '"'))) => char,
                _ => panic!("{line}: no such escape"),
            }),
            char => value.push(char),
        }
    }
    panic!("{line}: no closing quote")
}

fn check_name(name: &str) {
    let good = |char: char| char.is_ascii_alphanumeric() || char == '_';
    assert!(name.chars().all(good) && name.starts_with(|char: char| !char.is_ascii_digit()), "{name} is no name");
}

fn number(text: &str) -> f64 {
    if text == "+Inf" {
        return f64::INFINITY;
    }
    assert!(text.chars().all(|char| char.is_ascii_digit() || "+-.e".contains(char)), "{text} is no number");
    text.parse().unwrap_or_else(|_| panic!("{text} is no number"))
}
