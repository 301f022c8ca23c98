//! Care of the store while no daemon runs: restoring a backup, and verifying the store or a backup.
//!
//! Each takes the store's lock, as a daemon does, so neither can run beside one.

use std::fmt::Write;
use std::path::Path;

use openagent_core::config::Paths;
use openagent_core::session::Fault;

use crate::run::Options;
use crate::store::{self, Keys, Manifest, Report, StoreError};
use crate::{config, vault};

/// What is told at the end.
#[derive(Debug)]
pub struct Told {
    /// Lines for people.
    pub text: String,
    /// Whether nothing is wrong.
    pub is_sound: bool,
}

/// Puts the backup `file` in the place of the store.
///
/// # Errors
/// What kept it from that; the store is as it was then.
pub fn restore(options: &Options, file: &Path, without_keys: bool) -> Result<Told, Fault> {
    let paths = paths(options)?;
    config::make_folders(&paths).map_err(|error| error.fault())?;
    let opener = vault::opener_of(&paths.master_key_file).map_err(|error| error.fault())?;
    let keys = if without_keys { Keys::LeaveOut } else { Keys::Keep };
    let restored = store::restore(&paths.store_dir, file, keys, &opener).map_err(|error| error.fault())?;
    let mut text = format!("restored {}\n", described(&restored.manifest));
    if let Some(aside) = restored.aside {
        let _ = writeln!(text, "the store that was there is kept in {}", aside.display());
    }
    Ok(Told { text, is_sound: true })
}

/// Verifies the store, or the backup `file`.
///
/// # Errors
/// What kept it from reading to the end.
pub fn verify(options: &Options, file: Option<&Path>) -> Result<Told, Fault> {
    let paths = paths(options)?;
    let opener = vault::opener_of(&paths.master_key_file).map_err(|error| error.fault())?;
    match file {
        None => store::verify_offline(&paths.store_dir, &opener).map(|report| told("the store", &report)).map_err(|error| match error {
            StoreError::Locked { .. } => Fault { hint: "verify it while it runs: openagent daemon verify".to_owned(), ..error.fault() },
            error => error.fault(),
        }),
        Some(file) => {
            let scratch = std::env::temp_dir().join(format!("openagent-verify-{}", std::process::id()));
            let (manifest, report) = store::check(file, &scratch, &opener).map_err(|error| error.fault())?;
            Ok(told(&described(&manifest), &report))
        }
    }
}

fn paths(options: &Options) -> Result<Paths, Fault> {
    options.configuration().map(|(_, paths)| paths)
}

fn described(manifest: &Manifest) -> String {
    let Manifest { sessions, events, created_at, openagent_version, .. } = manifest;
    format!("a backup of {created_at} by version {openagent_version}: {sessions} sessions with {events} events")
}

fn told(what: &str, report: &Report) -> Told {
    let Report { format, sessions, events, records, opened, problem_count, .. } = report;
    let mut text = format!("{what}\n");
    let _ =
        writeln!(text, "format {format}; read {sessions} sessions, {events} events, {records} records; opened {opened} encrypted records");
    for problem in &report.problems {
        let _ = writeln!(text, "problem: {problem}");
    }
    let is_sound = *problem_count == 0;
    let _ = if is_sound {
        writeln!(text, "sound")
    } else {
        writeln!(text, "{problem_count} problems; restore a backup: openagent daemon restore FILE")
    };
    Told { text, is_sound }
}
