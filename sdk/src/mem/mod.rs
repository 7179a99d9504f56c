//! Memory for rings and buffers.

use std::io;
use std::ptr::NonNull;

use crate::sys::mem::Mapping;

/// What memory is wanted.
#[derive(Debug, Clone)]
pub struct MemRequest {
    /// Bytes.
    pub len: usize,
}

impl MemRequest {
    /// A request for `len` bytes.
    pub fn new(len: usize) -> Self {
        Self { len }
    }
}

/// Memory could not be had.
#[derive(Debug, thiserror::Error)]
#[error("mmap of {len} bytes failed: {source}")]
pub struct MemError {
    len: usize,
    source: io::Error,
}

/// Zeroed memory.
#[derive(Debug)]
pub struct Memory {
    mapping: Mapping,
}

impl Memory {
    /// Allocates it.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn alloc(request: &MemRequest) -> Result<Self, MemError> {
        let len = request.len.next_multiple_of(4096);
        Ok(Self { mapping: Mapping::anonymous(len).map_err(|source| MemError { len, source })? })
    }

    /// Where it starts.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.mapping.as_ptr()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Page size.
#[derive(Debug, Clone, Copy)]
pub struct PageSize;
impl PageSize {
    /// Bytes.
    pub fn bytes(self) -> usize {
        4096
    }
}
impl MemRequest {
    /// Near a node.
    pub fn node(self, _: Option<usize>) -> Self {
        self
    }
}
impl Memory {
    /// Page size.
    pub fn page_size(&self) -> PageSize {
        PageSize
    }
}
impl MemRequest {
    /// Fall back.
    pub fn fallback(self, _: bool) -> Self {
        self
    }
}
