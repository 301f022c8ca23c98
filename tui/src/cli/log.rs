//! Printing what happened in a session.
//!
//! The reader keeps a cursor: after a daemon that went away it goes on behind the last event that it printed, with no loss and no duplicate.

use openagent_core::cursor::{Advance, Cursor};
use openagent_core::event::PartDelta;
use openagent_core::id::SessionId;

use super::args::Logs;
use super::patience::Patience;
use super::{Done, Failure, OK, resolve};
use crate::client::{Client, ClientError, Snapshot, StreamItem};
use crate::output::text::visible;
use crate::output::{self, Format, event, say};

pub(super) async fn logs(client: &Client, logs: Logs, format: Format) -> Done {
    let id = resolve::session(client, &logs.id).await?;
    let mut printer = Printer { format, cursor: Cursor(logs.after), floor: 0, open_line: false };
    let mut patience = Patience::default();
    loop {
        let before = printer.cursor;
        let error = match printer.read(client, &id, &logs).await {
            Ok(()) => break,
            Err(Failure::Failed(error)) if logs.follow => error,
            Err(failure) => return Err(failure),
        };
        if printer.cursor != before {
            patience.there();
        }
        patience.again(error).await?;
    }
    printer.end_line()?;
    Ok(OK)
}

/// That older events are not all there, in one line.
fn compacted(snapshot: Snapshot) -> String {
    format!("older events were compacted: {} of the first {} are no longer kept", snapshot.dropped, snapshot.floor)
}

struct Printer {
    format: Format,
    cursor: Cursor,
    /// Up to here events were compacted: their numbers have holes.
    floor: u64,
    /// Letters were printed that did not end a line.
    open_line: bool,
}

impl Printer {
    async fn read(&mut self, client: &Client, id: &SessionId, logs: &Logs) -> Result<(), Failure> {
        let mut items = client.subscribe(id, self.cursor.0, logs.follow, logs.deltas).await?;
        while let Some(item) = items.next().await? {
            match item {
                StreamItem::Event(event) => {
                    match self.cursor.advance_above(self.floor, event.seq) {
                        Advance::Next => {}
                        Advance::Duplicate => continue,
                        Advance::Gap { first, last } => {
                            let what = format!("events {first} to {last} are missing from it");
                            return Err(ClientError::malformed(&what).into());
                        }
                    }
                    match self.format {
                        Format::Json => output::as_json_line(&event)?,
                        Format::Table => {
                            if let Some(line) = event::line(&event) {
                                self.end_line()?;
                                output::line(&line)?;
                            }
                        }
                    }
                }
                StreamItem::Delta(delta) => self.delta(&delta)?,
                StreamItem::Snapshot(snapshot) => {
                    (self.cursor, self.floor) = (Cursor::default(), snapshot.floor);
                    self.end_line()?;
                    say(&compacted(snapshot));
                }
                StreamItem::CaughtUp(_) => {}
            }
        }
        if items.unreadable() > 0 {
            say(&format!("{} items were skipped that this version cannot read", items.unreadable()));
        }
        Ok(())
    }

    fn delta(&mut self, delta: &PartDelta) -> Result<(), Failure> {
        match self.format {
            Format::Json => output::as_json_line(&serde_json::json!({ "delta": delta }))?,
            Format::Table => {
                output::print(&visible(&delta.text))?;
                self.open_line = !delta.text.ends_with('\n');
            }
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), Failure> {
        if std::mem::take(&mut self.open_line) {
            output::line("")?;
        }
        Ok(())
    }
}
