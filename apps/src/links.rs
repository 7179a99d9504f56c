//! Links that come and go while a program runs.

use std::time::{Duration, Instant};

use spinwake::port::{Link, Port, PortSpec};

use crate::console::EndRequest;
use crate::output::Output;
use crate::pace::Pace;

/// Copper negotiates for two or three seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Watches the links of a program's ports, and tells its operator what changes.
#[derive(Debug)]
pub struct Links {
    ports: Vec<Watched>,
    since: Instant,
}

#[derive(Debug)]
struct Watched {
    name: String,
    link: Link,
    partner: Partner,
    spec: String,
    /// It never had a link, and nobody has been told that this is odd.
    awaited: bool,
}

/// A port got no link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{spec} has had no link for {seconds} s; {ask}")]
pub struct LinkError {
    spec: String,
    seconds: u64,
    ask: &'static str,
}

/// What is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Partner {
    /// A cable, which leads somewhere.
    Cable,
    /// A program or a virtual machine, which starts and ends when it likes.
    Program,
}

impl Links {
    /// Begins to watch `ports`, opened by `specs`.
    pub fn new<'a>(ports: impl IntoIterator<Item = (&'a str, &'a dyn Port)>) -> Self {
        let watched = |(number, (spec, port)): (usize, (&str, &dyn Port))| {
            let link = port.link();
            Watched {
                name: format!("port {number}"),
                spec: spec.into(),
                link,
                partner: Partner::of(spec),
                awaited: link == Link::Down,
            }
        };
        Self { ports: ports.into_iter().enumerate().map(watched).collect(), since: Instant::now() }
    }

    /// Looks at all of them, in the order in which they were given; says each change to `output`, and warns once of a cable that
    /// leads nowhere.
    pub fn look<'a>(&mut self, ports: impl IntoIterator<Item = &'a dyn Port>, at: Duration, output: &Output) {
        let late = self.since.elapsed() > PATIENCE;
        for (watched, port) in self.ports.iter_mut().zip(ports) {
            let link = port.link();
            if link != watched.link {
                output.say(format_args!("{:>4.0} s  {}  {link}", at.as_secs_f64(), watched.name));
                watched.link = link;
            }
            watched.awaited &= link == Link::Down;
            if watched.awaited && late {
                watched.awaited = false;
                if watched.partner == Partner::Cable {
                    log::warn!("{}", watched.missing(PATIENCE));
                }
            }
        }
    }

    /// Looks at `ports` until all of them are up, or `end` is asked for.
    ///
    /// # Errors
    ///
    /// When a cable leads nowhere for ten seconds, or a program has not come within `limit`, where there is one.
    pub fn await_up<'a>(
        &mut self,
        ports: impl IntoIterator<Item = &'a dyn Port> + Clone,
        limit: Option<Duration>,
        output: &Output,
        end: &EndRequest,
    ) -> Result<(), LinkError> {
        for port in self.ports.iter_mut().filter(|port| port.link == Link::Down) {
            output.say(format_args!("{}  waiting for a link", port.name));
            // What it comes to is an error, not a warning as well.
            port.awaited = false;
        }
        let mut missing = None;
        Pace::start().run(None, end, |tick| {
            self.look(ports.clone(), tick.at, output);
            let down = self.ports.iter().filter(|port| port.link == Link::Down);
            let late = |port: &&Watched| match port.partner {
                Partner::Cable => tick.at > PATIENCE,
                Partner::Program => limit.is_some_and(|limit| tick.at > limit),
            };
            missing = down.clone().find(late).map(|port| port.missing(tick.at));
            down.count() > 0 && missing.is_none()
        });
        missing.map_or(Ok(()), Err)
    }
}

impl Watched {
    fn missing(&self, after: Duration) -> LinkError {
        let ask = match self.partner {
            Partner::Cable => "is its cable plugged in at both ends?",
            Partner::Program => "does the program at its other end run?",
        };
        LinkError { spec: self.spec.clone(), seconds: after.as_secs(), ask }
    }
}

impl Partner {
    fn of(spec: &str) -> Self {
        match spec.parse::<PortSpec>() {
            Ok(spec) if matches!(spec.kind(), "vhost" | "virtio-user") => Self::Program,
            _ => Self::Cable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_come_and_go_and_cables_stay() {
        for (spec, partner) in [
            ("vhost:/run/sw.sock,queues=2", Partner::Program),
            ("virtio-user:/run/sw.sock", Partner::Program),
            ("pci:0000:01:00.0", Partner::Cable),
            ("soft:", Partner::Cable),
        ] {
            assert_eq!(Partner::of(spec), partner, "{spec}");
        }
    }
}
