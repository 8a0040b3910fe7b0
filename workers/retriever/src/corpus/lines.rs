//! Files of lines, plain, gzipped or by zstd, which are told by their first bytes. What is hashed is the file itself,
//! not what it unpacks to.

use super::source::Format;
use super::{Place, Take, record};
use crate::error::{Result, RetrieverError};
use serde::de::{DeserializeSeed, Deserializer as _, SeqAccess, Visitor};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

/// Longest accepted line; a longer one is a file of another kind.
const LINE_LIMIT: usize = 16 << 20;
const BUFFER: usize = 1 << 20;

/// Shared with whoever reads on behalf of another.
type Hasher = Rc<RefCell<Sha256>>;

/// A file that is hashed as it is read.
struct Hashed {
    file: File,
    hasher: Hasher,
}

impl Read for Hashed {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(out)?;
        self.hasher.borrow_mut().update(&out[..read]);
        Ok(read)
    }
}

/// The file's unpacked content, and the hash of what was read of it.
fn unpacked(what: &'static str, path: &Path) -> Result<(Box<dyn BufRead>, Hasher)> {
    let file = File::open(path).map_err(RetrieverError::open(what, path))?;
    let hasher = Rc::new(RefCell::new(Sha256::new()));
    let mut raw = BufReader::with_capacity(BUFFER, Hashed { file, hasher: hasher.clone() });
    let first = raw.fill_buf().map_err(RetrieverError::io("read", path))?;
    let unpacked: Box<dyn BufRead> = if first.starts_with(&[0x1f, 0x8b]) {
        Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(raw)))
    } else if first.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder = zstd::stream::read::Decoder::with_buffer(raw).map_err(RetrieverError::io("unpack", path))?;
        Box::new(BufReader::with_capacity(BUFFER, decoder))
    } else {
        Box::new(raw)
    };
    Ok((unpacked, hasher))
}

/// sha256 of the whole file, of which a part was hashed as it was read.
fn whole(path: &Path, reader: Box<dyn BufRead>, hasher: &Hasher, read_to_end: bool) -> Result<String> {
    drop(reader);
    if read_to_end {
        return Ok(hex::encode(hasher.borrow().clone().finalize()));
    }
    // a limited corpus: the rest is hashed without being unpacked
    Ok(s3_artifacts::digest_file(path)?)
}

/// Hands every record to `take`; the file's sha256.
pub fn records(path: &Path, format: Format, take: Take<'_>) -> Result<String> {
    let (mut reader, hasher) = unpacked("corpus", path)?;
    let first = first_letter(path, &mut reader)?;
    if format == Format::Lines && first == Some(b'[') {
        array(path, &mut reader, take)?;
        return whole(path, reader, &hasher, false);
    }
    let mut names: Option<Vec<String>> = None;
    let mut wanted = true;
    let read_to_end = each_line(path, &mut reader, |number, line| {
        let place = Place { path, number };
        let text = std::str::from_utf8(line).map_err(|_| place.bad("not UTF-8".to_owned()))?;
        let text = if format == Format::Tab { text.trim_end_matches(['\n', '\r']) } else { text.trim_ascii() };
        if text.is_empty() {
            return Ok(true);
        }
        if !wanted {
            return Ok(false);
        }
        if format == Format::Tab && names.is_none() {
            names = Some(text.split('\t').map(str::to_owned).collect());
            return Ok(true);
        }
        // whether a record behind the limit is well-formed is nobody's business
        wanted = take(Place { path, number }, None)?;
        if !wanted {
            return Ok(false);
        }
        let parsed = match &names {
            Some(names) => record::columns(names, text),
            None => record::parse(text),
        };
        wanted = take(Place { path, number }, Some(parsed.map_err(|reason| place.bad(reason))?))?;
        Ok(true)
    })?;
    whole(path, reader, &hasher, read_to_end)
}

/// The first letter that is no space, without taking it.
fn first_letter(path: &Path, reader: &mut dyn BufRead) -> Result<Option<u8>> {
    loop {
        let chunk = reader.fill_buf().map_err(damaged(path))?;
        match chunk.iter().position(|byte| !byte.is_ascii_whitespace()) {
            Some(at) => return Ok(Some(chunk[at])),
            None if chunk.is_empty() => return Ok(None),
            None => {
                // leading blank lines are counted nowhere
                let spaces = chunk.len();
                reader.consume(spaces);
            }
        }
    }
}

/// A file that cannot be unpacked is a damaged input, not a broken disk.
fn damaged(path: &Path) -> impl FnOnce(std::io::Error) -> RetrieverError + '_ {
    move |source| match source.raw_os_error() {
        Some(_) => RetrieverError::Io { action: "read", path: path.to_owned(), source },
        None => RetrieverError::content(path, format!("cannot be unpacked ({source}); fetch it again")),
    }
}

/// Objects of one JSON array, as they come.
fn array(path: &Path, reader: &mut dyn BufRead, take: Take<'_>) -> Result<()> {
    struct Objects<'a, 'b> {
        path: &'a Path,
        take: Take<'b>,
        failed: &'a mut Option<RetrieverError>,
    }
    impl<'de> DeserializeSeed<'de> for Objects<'_, '_> {
        type Value = ();
        fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
            deserializer.deserialize_seq(self)
        }
    }
    impl<'de> Visitor<'de> for Objects<'_, '_> {
        type Value = ();
        fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            out.write_str("an array of objects")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
            let mut number = 0;
            while let Some(object) = items.next_element::<Map<String, Value>>()? {
                number += 1;
                let place = Place { path: self.path, number };
                let taken = record::entry(object)
                    .map_err(|reason| place.bad(reason))
                    .and_then(|entry| (self.take)(Place { path: self.path, number }, Some(entry)));
                if let Err(error) = taken {
                    *self.failed = Some(error);
                    return Err(serde::de::Error::custom("stopped"));
                }
            }
            Ok(())
        }
    }
    let mut failed = None;
    let mut json = serde_json::Deserializer::from_reader(reader);
    let objects = Objects { path, take, failed: &mut failed };
    let read = (&mut json).deserialize_seq(objects).and_then(|()| json.end());
    match (failed, read) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => {
            Err(RetrieverError::Line { path: path.to_owned(), line: error.line() as u64, reason: error.to_string() })
        }
        (None, Ok(())) => Ok(()),
    }
}

/// Calls `each` with the number (from one) and the bytes of every line, line end included, until it wants no more;
/// whether the end was reached.
fn each_line(path: &Path, reader: &mut dyn BufRead, mut each: impl FnMut(u64, &[u8]) -> Result<bool>) -> Result<bool> {
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        line.clear();
        loop {
            let chunk = reader.fill_buf().map_err(damaged(path))?;
            let (part, ended) = match chunk.iter().position(|byte| *byte == b'\n') {
                Some(at) => (&chunk[..=at], true),
                None => (chunk, chunk.is_empty()),
            };
            line.extend_from_slice(part);
            let used = part.len();
            reader.consume(used);
            if line.len() > LINE_LIMIT {
                let reason = format!("longer than {LINE_LIMIT} bytes; is this a jsonl file?");
                return Err(RetrieverError::Line { path: path.to_owned(), line: number + 1, reason });
            }
            if ended {
                break;
            }
        }
        if line.is_empty() {
            return Ok(true);
        }
        number += 1;
        if !each(number, &line)? {
            return Ok(false);
        }
    }
}
