//! Digests of files: plain ones for comparing, and Subresource Integrity for what was downloaded.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256, Sha512};

/// SHA-256 of a file, hexadecimal.
pub fn sha256_hex(file: &Path) -> Result<String> {
    digest::<Sha256>(file).map(hex::encode)
}

fn digest<D: Digest>(file: &Path) -> Result<Vec<u8>> {
    let mut source = File::open(file).with_context(|| format!("open {}", file.display()))?;
    let mut hasher = D::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match source.read(&mut buffer).with_context(|| format!("read {}", file.display()))? {
            0 => return Ok(hasher.finalize().to_vec()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Compares a file with a Subresource Integrity digest.
pub fn verify(file: &Path, integrity: &str) -> Result<()> {
    let (algorithm, expected) = integrity.split_once('-').context("the pinned integrity has no algorithm")?;
    let actual = match algorithm {
        "sha512" => STANDARD.encode(digest::<Sha512>(file)?),
        "sha256" => STANDARD.encode(digest::<Sha256>(file)?),
        other => bail!("the pinned integrity uses {other}, only sha512 and sha256 are taken"),
    };
    if actual != expected {
        bail!("the download's digest {algorithm}-{actual} is not the pinned {integrity}");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_tampered_download_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("download");
        // Known answers: SHA-512 and SHA-256 of "abc" (FIPS 180-2, appendix).
        let sha512 = "sha512-3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q86A4qmslPpUyknw==";
        let sha256 = "sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
        fs::write(&file, "abc").unwrap();
        verify(&file, sha512).unwrap();
        verify(&file, sha256).unwrap();
        fs::write(&file, "abd").unwrap();
        assert!(verify(&file, sha512).unwrap_err().to_string().contains("is not the pinned"));
        assert!(verify(&file, sha256).is_err());
        assert!(verify(&file, "md5-AAAA").is_err());
    }
}
