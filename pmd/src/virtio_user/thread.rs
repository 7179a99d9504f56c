//! The thread that makes a port's connections and looks after them. Each port has its own: a back end that is slow to answer
//! keeps nobody else waiting.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use spinwake::sys::epoll::{Epoll, Events, Trigger};
use spinwake::sys::socket;

use super::remote::Remote;
use super::session::Session;
use super::spec::UserSpec;

/// Between two attempts to connect: a fifth of the time within which frames are to flow again.
const RETRY: Duration = Duration::from_millis(20);
/// Between two looks at a socket that says nothing, and at whether the rings make sense.
const LOOK: Duration = Duration::from_millis(200);

/// What the thread waits for.
const ALARM: u64 = 0;
const SOCKET: u64 = 1;

/// How connections come about.
#[derive(Debug)]
enum Caller {
    Connect(PathBuf),
    Accept(Listener),
}

/// A listening socket, whose path goes with it.
#[derive(Debug)]
struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Fails only when somebody else has removed it.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Listener {
    fn bind(path: &Path) -> io::Result<Self> {
        // One that nobody listens to any longer is left over from a program that was killed.
        if let Err(error) = socket::connect(path)
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            std::fs::remove_file(path)?;
        }
        let socket = UnixListener::bind(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path: path.into() })
    }
}

/// Starts the thread. It ends after [`Remote::end`].
///
/// # Errors
///
/// What failed, and why: there is no thread or descriptor to be had, or no socket can be made at the path.
pub(super) fn start(remote: &Arc<Remote>, spec: &UserSpec) -> Result<JoinHandle<()>, (&'static str, io::Error)> {
    let caller = if spec.server {
        Caller::Accept(Listener::bind(&spec.path).map_err(|error| ("listening at the path", error))?)
    } else {
        Caller::Connect(spec.path.clone())
    };
    let epoll = Epoll::new().map_err(|error| ("epoll_create1", error))?;
    epoll.add(remote.alarm.as_fd(), ALARM, Trigger::Level).map_err(|error| ("epoll_ctl", error))?;
    let remote = remote.clone();
    std::thread::Builder::new()
        .name("virtio-user".into())
        .spawn(move || serve(&remote, &caller, &epoll))
        .map_err(|error| ("starting a thread", error))
}

fn serve(remote: &Remote, caller: &Caller, epoll: &Epoll) {
    loop {
        remote.alarm.take();
        if remote.has_ended() {
            return;
        }
        match caller.call(remote, epoll) {
            Ok(stream) => converse(remote, stream, epoll),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => remote.stay(&caller.explain(&error)),
        }
        remote.alarm.take();
        if remote.has_ended() {
            return;
        }
        remote.alarm.wait(RETRY);
    }
}

/// One connection from its beginning to its end.
fn converse(remote: &Remote, stream: UnixStream, epoll: &Epoll) {
    let session = match Session::open(stream) {
        Ok(session) => session,
        Err(failure) => return remote.refuse(&failure),
    };
    let Some(stream) = remote.arrive(session) else { return };
    if let Err(error) = epoll.add(stream.as_fd(), SOCKET, Trigger::Level) {
        log::warn!("{}: the socket cannot be watched ({error}); that the back end goes is seen late", remote.name);
    }
    while !remote.has_ended() && remote.attend() {
        wait(epoll, LOOK);
        remote.alarm.take();
    }
    // Fails only if it was not added.
    let _ = epoll.remove(stream.as_fd());
}

fn wait(epoll: &Epoll, limit: Duration) {
    // The kernel refuses the wait for no known reason; a pause instead keeps the loop from spinning then.
    if epoll.wait(&mut Events::new(2), limit).is_err() {
        std::thread::sleep(RETRY);
    }
}

impl Caller {
    /// A connection, if one is to be had now; waits for one for a while where it is the other side that connects.
    fn call(&self, remote: &Remote, epoll: &Epoll) -> io::Result<UnixStream> {
        let listener = match self {
            Self::Connect(path) => {
                let called = socket::connect(path);
                // Too many callers wait there already.
                if called.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                    remote.alarm.wait(RETRY);
                }
                return called;
            }
            Self::Accept(listener) => &listener.socket,
        };
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(stream)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !remote.has_ended() => {
                epoll.add(listener.as_fd(), SOCKET, Trigger::Level)?;
                wait(epoll, LOOK);
                epoll.remove(listener.as_fd())?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    fn explain(&self, error: &io::Error) -> String {
        match self {
            Self::Connect(path) if error.kind() == io::ErrorKind::PermissionDenied => {
                let path = path.display();
                format!("{path} may not be connected to ({error}); run as its owner, or in its group")
            }
            Self::Connect(path) => format!("no back end answers at {} ({error})", path.display()),
            Self::Accept(listener) => format!("nobody can connect to {} ({error})", listener.path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_back_end_with_too_many_callers_is_not_called_again_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _busy = UnixListener::bind(&path).unwrap();
        // Those that have hung up stay in line until they are accepted.
        while socket::connect(&path).is_ok() {}
        let (remote, epoll) = (Remote::new("caller", false).unwrap(), Epoll::new().unwrap());
        let called = Instant::now();
        let error = Caller::Connect(path).call(&remote, &epoll).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(called.elapsed() >= RETRY);
    }
}
