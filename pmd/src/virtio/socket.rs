//! Paths of vhost-user sockets.

use std::path::Path;

/// One spelling for all paths that lead to one socket, whether or not it is there yet.
pub(crate) fn one_spelling(path: &Path) -> String {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    // A socket that a back end is about to make is not there yet; its folder is.
    let folder = whole.parent().and_then(|folder| folder.canonicalize().ok());
    let path = match (folder, whole.file_name()) {
        (Some(folder), Some(file)) => folder.join(file),
        _ => whole,
    };
    path.display().to_string()
}
