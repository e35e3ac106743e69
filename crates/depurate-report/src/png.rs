//! PNG images as they travel in a report.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::ReportError;

/// A PNG file with its size in pixels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Png {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The whole file in standard base64.
    pub base64: String,
}

impl Png {
    /// Wraps an encoded PNG file; width and height are read from its header.
    ///
    /// # Errors
    /// If the bytes do not begin with a PNG signature and header.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ReportError> {
        let bad = |reason| ReportError::BadPng {
            bytes: bytes.len(),
            reason,
        };
        // signature (8), chunk length (4), "IHDR" (4), width (4), height (4)
        let header: &[u8; 24] = bytes.first_chunk().ok_or(bad("the header is cut short"))?;
        if !header.starts_with(b"\x89PNG\r\n\x1a\n") || &header[12..16] != b"IHDR" {
            return Err(bad("the signature is missing"));
        }
        let big_endian = |at: usize| {
            header[at..at + 4]
                .iter()
                .fold(0, |n, &b| n << 8 | u32::from(b))
        };
        Ok(Self {
            width: big_endian(16),
            height: big_endian(20),
            base64: STANDARD.encode(bytes),
        })
    }

    /// The encoded file.
    ///
    /// # Errors
    /// If the text is no base64.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ReportError> {
        STANDARD
            .decode(&self.base64)
            .map_err(|_| ReportError::BadPng {
                bytes: self.base64.len(),
                reason: "the text is no base64",
            })
    }
}
