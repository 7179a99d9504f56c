//! As much of HTTP as one page needs (RFC 9112): a request's head, and an answer after which the connection ends.

use std::sync::Arc;

use super::text::CONTENT_TYPE;

/// Bytes that a request's head may have. Browsers with a cookie or two, and scrapers, need a tenth of it.
pub(super) const HEAD_MAX: usize = 8192;

/// What a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// The metrics.
    Metrics,
    /// The page that says where the metrics are.
    Hint,
    /// A page that there is not.
    Unknown,
    /// Something to be done with a page, other than to get it.
    NotGet,
    /// What is no HTTP.
    Garbage,
    /// More than anyone needs to ask.
    TooLong,
}

/// An answer, in two pieces.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: Vec<u8>,
    pub(super) body: Arc<[u8]>,
}

impl Request {
    /// What `bytes` ask for; `None` while more must come.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        if !has_end(bytes) {
            return (bytes.len() >= HEAD_MAX).then_some(Self::TooLong);
        }
        let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let words: Vec<_> = line.split(|&byte| byte == b' ').collect();
        Some(match words[..] {
            [method, target, version] if !target.is_empty() && version.starts_with(b"HTTP/1.") => {
                let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
                match (method, path) {
                    (b"GET", b"/metrics") => Self::Metrics,
                    (b"GET", b"/") => Self::Hint,
                    (b"GET", _) => Self::Unknown,
                    _ => Self::NotGet,
                }
            }
            _ => Self::Garbage,
        })
    }

    /// The answer, for which `metrics` is called if they were asked for.
    pub(super) fn answer(self, metrics: impl FnOnce() -> Arc<[u8]>) -> Answer {
        let (status, more, text) = match self {
            Self::Metrics => {
                let body = metrics();
                return Answer { head: head("200 OK", CONTENT_TYPE, "", body.len()), body };
            }
            Self::Hint => ("200 OK", "", "The metrics of this program are at /metrics.\n"),
            Self::Unknown => ("404 Not Found", "", "There is no such page; the metrics are at /metrics.\n"),
            Self::NotGet => ("405 Method Not Allowed", "Allow: GET\r\n", "Metrics can only be read: GET /metrics.\n"),
            Self::Garbage => ("400 Bad Request", "", "That is no HTTP request; the metrics are at /metrics.\n"),
            Self::TooLong => ("431 Request Header Fields Too Large", "", "That request is too long.\n"),
        };
        Answer { head: head(status, "text/plain; charset=utf-8", more, text.len()), body: text.as_bytes().into() }
    }
}

/// Whether the empty line that ends a head is there. Lines may end without a carriage return (RFC 9112, section 2.2).
fn has_end(bytes: &[u8]) -> bool {
    bytes.windows(4).any(|end| end == b"\r\n\r\n") || bytes.windows(2).any(|end| end == b"\n\n")
}

fn head(status: &str, content_type: &str, more: &str, len: usize) -> Vec<u8> {
    let fixed = "Cache-Control: no-store\r\nConnection: close\r\n";
    format!("HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len}\r\n{more}{fixed}\r\n")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_what_its_first_line_says() {
        for (text, request) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Request::Metrics),
            ("GET /metrics?name[]=x HTTP/1.0\n\n", Request::Metrics),
            ("GET / HTTP/1.1\r\n\r\n", Request::Hint),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", Request::Unknown),
            ("GET /../metrics HTTP/1.1\r\n\r\n", Request::Unknown),
            ("POST /metrics HTTP/1.1\r\n\r\n", Request::NotGet),
            ("get /metrics HTTP/1.1\r\n\r\n", Request::NotGet),
            ("GET  HTTP/1.1\r\n\r\n", Request::Garbage),
            ("GET /metrics\r\n\r\n", Request::Garbage),
            ("GET /metrics HTTP/2\r\n\r\n", Request::Garbage),
            ("\r\n\r\n", Request::Garbage),
        ] {
            assert_eq!(Request::parse(text.as_bytes()), Some(request), "{text}");
        }
        assert_eq!(Request::parse(b"GET /metrics HTTP/1.1\r\nHost: x\r\n"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_something_once_they_are_many(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            Request::parse(&bytes);
            bytes.resize(HEAD_MAX, b'x');
            prop_assert!(Request::parse(&bytes).is_some());
        }
    }
}
