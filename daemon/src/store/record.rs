//! Keys and values.
//!
//! All tables share one sled tree, because a sled batch is atomic within one tree only; the first byte of a key is its table. A value is cut
//! into chunks under consecutive keys: sled writes a leaf (up to about 20 values) over 128 KiB into a file of its own, which it never makes
//! durable, so no leaf may become that large. The first chunk begins with the version of the record's form and the value's length.
//!
//! ```text
//! key     table (1 byte), name, chunk number (u16, big-endian)
//! value   first chunk: version (1 byte), length (u32, big-endian), bytes; the others: bytes
//! ```
//! A leading version byte rather than a `v` field, because it is the same for JSON and for encrypted records, and because it is known
//! before anything is parsed. Everything that is not encrypted is serde JSON.

use openagent_core::id::SessionId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use sled::{Batch, Db};

use super::StoreError;

/// Version of the form of every record written now.
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 5;

/// Twenty-one chunks and their keys stay below the 128 KiB from which sled uses files that it does not make durable.
pub(super) const CHUNK_BYTES: usize = 5 * 1024;

/// Largest value: as many chunks as their numbers can count.
const VALUE_MAX_BYTES: usize = CHUNK_BYTES * (u16::MAX as usize);

/// First byte of each key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Table {
    Session = b's',
    Event = b'e',
    Cursor = b'c',
    MessageUsage = b'u',
    DayUsage = b'd',
    Key = b'k',
    Rule = b'p',
    Sealed = b'x',
    /// Sessions whose removal is not finished.
    Leaving = b'r',
    /// Where among the kept events of a history the state of a message, a part and the like stands.
    Place = b'l',
    Meta = b'm',
}

impl Table {
    /// The table that keys with this first byte are of.
    pub(super) fn of(first: u8) -> Option<Self> {
        const ALL: [Table; 11] = [
            Table::Session,
            Table::Event,
            Table::Cursor,
            Table::MessageUsage,
            Table::DayUsage,
            Table::Key,
            Table::Rule,
            Table::Sealed,
            Table::Leaving,
            Table::Place,
            Table::Meta,
        ];
        ALL.into_iter().find(|table| *table as u8 == first)
    }
}

/// A record's name: table and key without the chunk number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name(Vec<u8>);

impl Name {
    pub(super) fn new(table: Table, fields: &[&[u8]]) -> Self {
        let mut name = vec![table as u8];
        for (at, field) in fields.iter().enumerate() {
            if at > 0 {
                name.push(0);
            }
            name.extend_from_slice(field);
        }
        Self(name)
    }

    pub(super) fn event(session: &SessionId, seq: u64) -> Self {
        Self::new(Table::Event, &[session.as_str().as_bytes(), &seq.to_be_bytes()])
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name of which `rest` follows this one.
    pub(super) fn followed_by(&self, rest: &[u8]) -> Self {
        Self([&self.0[..], rest].concat())
    }

    fn chunk(&self, number: u16) -> Vec<u8> {
        [&self.0[..], &number.to_be_bytes()].concat()
    }
}

/// Start of the keys of `table` whose first field is `first` and which have further fields.
pub(super) fn prefix(table: Table, first: &[u8]) -> Vec<u8> {
    let mut prefix = Name::new(table, &[first]).0;
    prefix.push(0);
    prefix
}

/// A name for texts of others: of fixed length, and without the zero bytes that separate the fields of a name meaning anything.
pub(super) fn digest(texts: &[&str]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for text in texts {
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(text);
    }
    digest.finalize().into()
}

/// Number of chunks of a value of `bytes`.
pub(super) fn chunks(bytes: usize) -> u16 {
    u16::try_from((bytes + HEADER_BYTES).div_ceil(CHUNK_BYTES)).unwrap_or(u16::MAX)
}

/// Puts a value that was never there before.
pub(super) fn put_new(batch: &mut Batch, name: &Name, value: &[u8]) -> Result<(), StoreError> {
    let length = u32::try_from(value.len()).ok().filter(|_| value.len() < VALUE_MAX_BYTES - HEADER_BYTES);
    let length = length.ok_or(StoreError::EventTooLarge { bytes: value.len() })?;
    let (head, rest) = value.split_at(value.len().min(CHUNK_BYTES - HEADER_BYTES));
    batch.insert(name.chunk(0), [&[VERSION], &length.to_be_bytes()[..], head].concat());
    for (number, chunk) in (1..).zip(rest.chunks(CHUNK_BYTES)) {
        batch.insert(name.chunk(number), chunk);
    }
    Ok(())
}

/// Puts a value in the place of an earlier one, if there is one.
pub(super) fn put(db: &Db, batch: &mut Batch, name: &Name, value: &[u8]) -> Result<(), StoreError> {
    let before = stored_chunks(db, name)?;
    for number in chunks(value.len())..before {
        batch.remove(name.chunk(number));
    }
    put_new(batch, name, value)
}

/// Removes a value; answers whether there was one.
pub(super) fn remove(db: &Db, batch: &mut Batch, name: &Name) -> Result<bool, StoreError> {
    let before = stored_chunks(db, name)?;
    for number in 0..before {
        batch.remove(name.chunk(number));
    }
    Ok(before > 0)
}

fn stored_chunks(db: &Db, name: &Name) -> Result<u16, StoreError> {
    let head = db.get(name.chunk(0)).map_err(|e| StoreError::engine("read a record", e))?;
    head.map_or(Ok(0), |head| header(&head).map(|(length, _)| chunks(length)))
}

/// The length of a value, and what of it is in its first chunk.
pub(super) fn header(chunk: &[u8]) -> Result<(usize, &[u8]), StoreError> {
    let bad = |what: &str| StoreError::BadRecord { what: what.to_owned() };
    let (version, rest) = chunk.split_first().ok_or_else(|| bad("record (empty)"))?;
    if *version != VERSION {
        return Err(bad(&format!("record (of form {version})")));
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(|| bad("record (cut)"))?;
    Ok((usize::try_from(u32::from_be_bytes(*length)).map_err(|_| bad("record (length)"))?, rest))
}

/// Reads one value.
pub(super) fn get(db: &Db, name: &Name) -> Result<Option<Vec<u8>>, StoreError> {
    let engine = |e| StoreError::engine("read a record", e);
    let Some(head) = db.get(name.chunk(0)).map_err(engine)? else { return Ok(None) };
    let (length, head) = header(&head)?;
    let mut value = Vec::with_capacity(length.min(VALUE_MAX_BYTES));
    value.extend_from_slice(head);
    for number in 1..chunks(length) {
        let chunk = db.get(name.chunk(number)).map_err(engine)?;
        value.extend_from_slice(&chunk.ok_or_else(|| StoreError::BadRecord { what: "record (a chunk is missing)".to_owned() })?);
    }
    complete(value, length).map(Some)
}

fn complete(value: Vec<u8>, length: usize) -> Result<Vec<u8>, StoreError> {
    if value.len() == length { Ok(value) } else { Err(StoreError::BadRecord { what: "record (of another length)".to_owned() }) }
}

/// Reads values in the order of their keys from `from` (a name's bytes) as long as keys begin with `prefix`; `take` gets the rest of the name and the
/// value and answers whether to go on.
pub(super) fn scan(
    db: &Db,
    prefix: &[u8],
    from: &Name,
    mut take: impl FnMut(&[u8], Vec<u8>) -> Result<bool, StoreError>,
) -> Result<(), StoreError> {
    let mut rows = db.range(from.0.clone()..);
    let mut next = || rows.next().transpose().map_err(|e| StoreError::engine("read records", e));
    while let Some((key, head)) = next()? {
        let Some(name) = key.strip_prefix(prefix).and_then(|rest| rest.len().checked_sub(2).map(|end| &rest[..end])) else { break };
        let (length, head) = header(&head)?;
        let mut value = Vec::with_capacity(length.min(VALUE_MAX_BYTES));
        value.extend_from_slice(head);
        for number in 1..chunks(length) {
            let row = next()?
                .filter(|(at, _)| at.ends_with(&number.to_be_bytes()) && at.len() == key.len() && at.starts_with(&key[..key.len() - 2]));
            value.extend_from_slice(&row.ok_or_else(|| StoreError::BadRecord { what: "record (a chunk is missing)".to_owned() })?.1);
        }
        if !take(name, complete(value, length)?)? {
            break;
        }
    }
    Ok(())
}

/// All values of a table.
pub(super) fn scan_table(db: &Db, table: Table, mut take: impl FnMut(&[u8], Vec<u8>) -> Result<(), StoreError>) -> Result<(), StoreError> {
    scan(db, &[table as u8], &Name::new(table, &[]), |name, value| take(name, value).map(|()| true))
}

/// A value's JSON.
pub(super) fn encode<T: Serialize>(what: &str, value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|_| StoreError::BadRecord { what: what.to_owned() })
}

/// A value of JSON.
pub(super) fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|_| StoreError::BadRecord { what: what.to_owned() })
}
