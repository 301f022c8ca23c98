//! Looking for a secret where it must not be: in bytes, in folders of this machine, and from inside a container.
//!
//! A secret is looked for as it is and in the forms in which programs store and send text. Invariant: the secret's core is searched for, so that a place which
//! keeps only most of it is found too; and a search tells how much it read, so that one that read nothing cannot pass for one that found nothing.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use openagent_core::seal::random;

/// The searcher for the inside of a container, for `perl -e`.
pub const SEARCHER: &str = include_str!("leak.pl");

/// A key that no other run has, with letters that are changed by URL encoding.
#[must_use]
pub fn canary() -> String {
    format!("sk-canary/{}+/={}", hex::encode(random::<12>()), hex::encode(random::<12>()))
}

/// A secret in all its forms.
#[derive(Debug)]
pub struct Needles(Vec<(&'static str, Vec<u8>)>);

impl Needles {
    /// The forms of `secret`, without its first and last bytes.
    ///
    /// # Panics
    /// When it is too short to be told from chance.
    #[must_use]
    pub fn of(secret: &str) -> Self {
        assert!(secret.len() >= 32, "short secrets are found everywhere");
        let core = &secret[6..secret.len() - 4];
        let encoded = |skip: usize| {
            // Where a longer text around it is encoded, the secret begins at any of three places of a group of four letters.
            let mut padded = vec![0; skip];
            // Its last letters are hexadecimal digits, which look alike in both alphabets.
            padded.extend_from_slice(&core.as_bytes()[core.len() - 18..]);
            let text = STANDARD_NO_PAD.encode(padded);
            text.as_bytes()[4 * usize::from(skip > 0)..text.len() - text.len() % 4].to_vec()
        };
        let url: String = core
            .bytes()
            .map(|byte| {
                if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
            })
            .collect();
        Self(vec![
            ("plain", core.as_bytes().to_vec()),
            ("reversed", core.bytes().rev().collect()),
            ("hex", hex::encode(core).into_bytes()),
            ("hex-upper", hex::encode_upper(core).into_bytes()),
            ("base64-0", encoded(0)),
            ("base64-1", encoded(1)),
            ("base64-2", encoded(2)),
            ("url", url.into_bytes()),
            ("json", core.replace('/', "\\/").into_bytes()),
            ("utf16", core.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ])
    }

    /// Names of the forms that `bytes` hold.
    #[must_use]
    pub fn found_in(&self, bytes: &[u8]) -> Vec<&'static str> {
        self.0.iter().filter(|(_, form)| memchr::memmem::find(bytes, form).is_some()).map(|(name, _)| *name).collect()
    }

    /// Panics when `bytes` hold the secret; `place` tells where they come from.
    ///
    /// # Panics
    /// When they do.
    pub fn must_not_be_in(&self, place: &str, bytes: &[u8]) {
        assert!(!bytes.is_empty(), "{place}: nothing was read, so nothing is known");
        let found = self.found_in(bytes);
        assert!(found.is_empty(), "the secret is in {place} ({found:?})");
    }

    /// Looks into every file of a folder, and at every name; gives the finds and how many bytes were read.
    ///
    /// # Panics
    /// When something cannot be read: then nothing is known.
    #[must_use]
    pub fn search_folder(&self, folder: &Path) -> (Vec<String>, u64) {
        let (mut finds, mut read, mut folders) = (vec![], 0, vec![folder.to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
                let path = entry.expect("folders can be listed").path();
                let mut look = |bytes: &[u8]| finds.extend(self.found_in(bytes).iter().map(|form| format!("{form} in {}", path.display())));
                look(path.as_os_str().as_encoded_bytes());
                let kind = path.symlink_metadata().expect("what is listed is there").file_type();
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_symlink() {
                    look(std::fs::read_link(&path).expect("links can be read").as_os_str().as_encoded_bytes());
                } else if kind.is_file() {
                    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    read += bytes.len() as u64;
                    look(&bytes);
                }
            }
        }
        (finds, read)
    }

    /// The standard input of [`SEARCHER`].
    #[must_use]
    pub fn for_searcher(&self) -> String {
        let line = |(name, form): &(&str, Vec<u8>)| {
            let hidden: Vec<u8> = form.iter().map(|byte| byte ^ 0x5a).collect();
            format!("{name} {}\n", hex::encode(hidden))
        };
        self.0.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_in_every_form_and_at_every_place() {
        let secret = canary();
        let needles = Needles::of(&secret);
        for skip in 0..3 {
            let header = format!("{}{secret}", &"xyz"[..skip]);
            assert!(!needles.found_in(STANDARD_NO_PAD.encode(&header).as_bytes()).is_empty(), "base64 with {skip} bytes before it");
        }
        assert_eq!(needles.found_in(format!("Bearer {secret}").as_bytes()), ["plain"]);
        assert_eq!(needles.found_in(secret.chars().rev().collect::<String>().as_bytes()), ["reversed"]);
        assert_eq!(needles.found_in(format!("{:?}", secret.as_bytes()).as_bytes()), [""; 0]);
        assert_eq!(needles.found_in(secret.replace('/', "%2F").replace('+', "%2B").replace('=', "%3D").as_bytes()), ["url"]);
        assert_eq!(needles.found_in(canary().as_bytes()), [""; 0]);
    }
}
