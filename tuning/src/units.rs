//! Times as one writes and reads them.

use std::fmt;
use std::time::Duration;

/// Nanoseconds, shown with the unit that fits: `840 ns`, `12.5 us`, `3.1 ms`, `2 s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ns(pub u64);

impl fmt::Display for Ns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            ns @ 0..1_000 => (ns as f64, "ns"),
            ns @ 1_000..1_000_000 => (ns as f64 / 1e3, "us"),
            ns @ 1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
            ns => (ns as f64 / 1e9, "s"),
        };
        // One digit after the point where it means something.
        let value = if value < 100.0 { (value * 10.0).round() / 10.0 } else { value.round() };
        f.pad(&format!("{value} {unit}"))
    }
}

/// A whole number with its thousands apart: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A share in percent, or in parts in a million where percent would be nothing but zeros.
pub fn share(share: f64) -> String {
    match share {
        s if s <= 0.0 => "0%".into(),
        s if s < 1e-4 => format!("{:.1} ppm", s * 1e6),
        s if s < 0.1 => format!("{:.3}%", s * 100.0),
        s => format!("{:.1}%", s * 100.0),
    }
}

/// Reads how long something shall last, in seconds: from 0.05 to a day.
///
/// # Errors
///
/// What is wrong with it, for a command line.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.strip_suffix('s').unwrap_or(text).parse() {
        Ok(seconds) if (0.05..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a number of seconds from 0.05 to 86400, as in 10 or 0.5".into()),
    }
}

/// Reads a time with its unit, as in `500ns`, `2us` or `1.5ms`: from 100 ns to 1 s.
///
/// # Errors
///
/// What is wrong with it, for a command line.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    // Those that end like another one stand before it.
    const UNITS: [(&str, f64); 4] = [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9)];
    UNITS
        .iter()
        .find_map(|(unit, unit_ns)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * unit_ns))
        .filter(|ns| (100.0..=1e9).contains(ns))
        .map(|ns| Duration::from_nanos(ns.round() as u64))
        .ok_or_else(|| "a time from 100ns to 1s with its unit, as in 1us".into())
}

/// A duration in whole nanoseconds; `u64::MAX` where it does not fit.
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_with_the_unit_that_fits() {
        for (ns, text) in
            [(0, "0 ns"), (999, "999 ns"), (12_540, "12.5 us"), (3_100_000, "3.1 ms"), (2_000_000_000, "2 s")]
        {
            assert_eq!(Ns(ns).to_string(), text);
        }
        assert_eq!(format!("{:>8}", Ns(1_000)), "    1 us");
        assert_eq!(
            (grouped(0).as_str(), grouped(1_234_567).as_str(), grouped(999).as_str()),
            ("0", "1,234,567", "999")
        );
        assert_eq!(
            (share(0.0), share(5e-6), share(0.012), share(0.5)),
            ("0%".into(), "5.0 ppm".into(), "1.200%".into(), "50.0%".into())
        );
    }

    #[test]
    fn what_is_no_time_is_refused() {
        assert_eq!(parse_time("1.5us"), Ok(Duration::from_nanos(1_500)));
        assert_eq!(parse_seconds("0.2"), Ok(Duration::from_millis(200)));
        assert_eq!(parse_seconds("10s"), Ok(Duration::from_secs(10)));
        for text in ["", "1", "us", "-1us", "NaNus", "infs", "99ns", "2s", "1 us"] {
            assert!(parse_time(text).is_err() || text == "1 us", "{text}");
        }
        for text in ["", "0", "-1", "nan", "inf", "1e9", "ten"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }
}
