//! The address of a PCI function.

use std::fmt;
use std::str::FromStr;

/// The address of a PCI function: domain, bus, device, function.
///
/// Written `0000:01:00.0`; read in that form or without the domain (`01:00.0`), which then is 0000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bdf {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl Bdf {
    /// The function at this address.
    ///
    /// Linux gives domains above 0xffff to bridges that hide buses of their own, hence 32 bits.
    ///
    /// # Panics
    ///
    /// If `device` is above 31 or `function` above 7.
    pub const fn new(domain: u32, bus: u8, device: u8, function: u8) -> Self {
        assert!(device < 32, "a PCI bus has 32 devices");
        assert!(function < 8, "a PCI device has 8 functions");
        Self { domain, bus, device, function }
    }

    /// The domain (segment).
    pub const fn domain(self) -> u32 {
        self.domain
    }

    /// The bus in its domain.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// The device on its bus, 0 to 31.
    pub const fn device(self) -> u8 {
        self.device
    }

    /// The function of its device, 0 to 7.
    pub const fn function(self) -> u8 {
        self.function
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl FromStr for Bdf {
    type Err = ParseBdfError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |part, limit| ParseBdfError { input: text.to_owned(), part, limit };
        let (slots, function) = text.rsplit_once('.').ok_or_else(|| wrong("the function", 7))?;
        let (rest, device) = slots.rsplit_once(':').ok_or_else(|| wrong("the device", 0x1f))?;
        let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
        let number = |digits: &str, part, limit| hex(digits, limit).ok_or_else(|| wrong(part, limit));
        Ok(Self {
            domain: number(domain, "the domain", u32::MAX)?,
            bus: number(bus, "the bus", 0xff)? as u8,
            device: number(device, "the device", 0x1f)? as u8,
            function: number(function, "the function", 7)? as u8,
        })
    }
}

/// A text that is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{input}` is not a PCI address: {part} must be a hexadecimal number up to {limit:x}; \
     write domain:bus:device.function, such as 0000:01:00.0, or 01:00.0 in domain 0000"
)]
pub struct ParseBdfError {
    input: String,
    part: &'static str,
    limit: u32,
}

/// The value of `digits`, and only digits (`from_str_radix` also takes a sign).
fn hex(digits: &str, limit: u32) -> Option<u32> {
    let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let value = u32::from_str_radix(digits, 16).ok()?;
    (plain && value <= limit).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_are_read_and_the_full_one_is_written() {
        let bdf: Bdf = "0000:01:1f.7".parse().unwrap();
        assert_eq!(bdf, Bdf::new(0, 1, 31, 7));
        assert_eq!("01:1f.7".parse::<Bdf>().unwrap(), bdf);
        assert_eq!(bdf.to_string(), "0000:01:1f.7");
        assert_eq!("10000:e1:00.0".parse::<Bdf>().unwrap().to_string(), "10000:e1:00.0");
    }

    #[test]
    fn a_wrong_part_is_named() {
        for (text, part) in [
            ("", "the function"),
            ("eth0", "the function"),
            ("01:00", "the function"),
            ("01:00.8", "the function"),
            ("01:00.+1", "the function"),
            ("0.0", "the device"),
            ("01:20.0", "the device"),
            ("100:00.0", "the bus"),
            (":00.0", "the bus"),
            ("x:01:00.0", "the domain"),
            ("0:0000:01:00.0", "the domain"),
            ("123456789:01:00.0", "the domain"),
        ] {
            let error = text.parse::<Bdf>().unwrap_err().to_string();
            assert!(error.contains(&format!("{part} must be")), "{text}: {error}");
            assert!(error.contains("0000:01:00.0"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(domain: u32, bus: u8, device in 0..32u8, function in 0..8u8) {
            let bdf = Bdf::new(domain, bus, device, function);
            prop_assert_eq!(bdf.to_string().parse::<Bdf>().unwrap(), bdf);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<Bdf>();
        }
    }
}
