//! The socket that clients come to, TCP or Unix, and the streams that they come by.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};

use super::MetricsAddress;

/// Metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another program serves there.
    #[error("cannot serve metrics at {address}: another program is listening there; end it, or give --metrics another")]
    InUse {
        /// Where.
        address: MetricsAddress,
    },
    /// The path of the socket is taken by something that is no socket.
    #[error(
        "cannot serve metrics at unix:{path}: that path exists and is no socket; remove it, or give --metrics another"
    )]
    NoSocket {
        /// Which path.
        path: String,
    },
    /// The system refused.
    #[error(
        "cannot serve metrics at {address}: {source}; give --metrics an address of this machine, or a path to write to"
    )]
    Listen {
        /// Where.
        address: MetricsAddress,
        /// The meaning of errno.
        source: io::Error,
    },
    /// No thread, or nothing to make it wait on.
    #[error("cannot serve metrics at {address}: no thread could be started: {source}; raise the limits of the process")]
    Thread {
        /// Where.
        address: MetricsAddress,
        /// The meaning of errno.
        source: io::Error,
    },
}

/// A socket that clients come to. Dropping it removes the file of a Unix socket.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file of a Unix socket of ours.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode: another program may have put its own socket in this one's place.
    id: (u64, u64),
}

/// A client's stream.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    pub(super) fn bind(address: &MetricsAddress) -> Result<Self, ServeError> {
        let in_use = || ServeError::InUse { address: address.clone() };
        let error = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => in_use(),
            _ => ServeError::Listen { address: address.clone(), source },
        };
        match address {
            MetricsAddress::Tcp(address) => TcpListener::bind(*address).map(Self::Tcp).map_err(error),
            MetricsAddress::Unix(path) => {
                match occupant(path).map_err(error)? {
                    Occupant::None => {}
                    Occupant::Stale => fs::remove_file(path).map_err(error)?,
                    Occupant::Live => return Err(in_use()),
                    Occupant::Other => return Err(ServeError::NoSocket { path: path.display().to_string() }),
                }
                let listener = UnixListener::bind(path).map_err(error)?;
                let id = socket_id(path).map_err(error)?;
                Ok(Self::Unix(listener, SocketFile { path: path.clone(), id }))
            }
        }
    }

    /// Where it is: the port that was found for port 0.
    pub(super) fn address(&self) -> io::Result<MetricsAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(MetricsAddress::Tcp),
            Self::Unix(_, file) => Ok(MetricsAddress::Unix(file.path.clone())),
        }
    }

    /// The next client.
    pub(super) fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
            Self::Unix(listener, _) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
        }
    }

    /// Has `registry` tell when there is a client.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.register(registry, token, Interest::READABLE),
            Self::Unix(listener, _) => listener.register(registry, token, Interest::READABLE),
        }
    }
}

/// What is at the path of a socket to be.
enum Occupant {
    None,
    /// A socket that nobody listens on.
    Stale,
    /// A socket that somebody listens on.
    Live,
    Other,
}

fn occupant(path: &Path) -> io::Result<Occupant> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::None),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => return Ok(Occupant::Other),
        Ok(_) => {}
    }
    // Does not wait: a listener whose queue is full is one, too.
    match UnixStream::connect(path) {
        Ok(_) => Ok(Occupant::Live),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock => Ok(Occupant::Live),
            io::ErrorKind::ConnectionRefused => Ok(Occupant::Stale),
            io::ErrorKind::NotFound => Ok(Occupant::None),
            _ => Err(error),
        },
    }
}

fn socket_id(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if socket_id(&self.path).is_ok_and(|id| id == self.id) {
            // What stays behind is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Stream {
    /// Tells the client that nothing more comes.
    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    /// Has `registry` tell when it can be read or written.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interests = Interest::READABLE | Interest::WRITABLE;
        match self {
            Self::Tcp(stream) => stream.register(registry, token, interests),
            Self::Unix(stream) => stream.register(registry, token, interests),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
