//! The index and what is asked of it.

use super::limits::cap_memory;
use faiss::index::autotune::ParameterSpace;
use faiss::index::io::{read_index_with_flags, write_index};
use faiss::index::io_flags::IoFlags;
use faiss::index::{Idx, IndexImpl};
use faiss::{Index as _, MetricType, index_factory};
use s3_faiss::wire::{About, Reply, Request, from_bytes, to_bytes};
use std::path::Path;

/// FAISS' `IO_FLAG_MMAP_IFC`: flat codes and graphs are mapped, and need no more memory than searches touch. Inverted
/// lists are read whole: what FAISS offers for those starts threads for every search.
const MAPPED: i32 = 1 << 9;

/// What answers: an index, and a training sample while it comes in.
#[derive(Default)]
pub struct Index {
    index: Option<IndexImpl>,
    sample: Vec<f32>,
}

/// An answer and its body, or why there is none.
type Answer = Result<(Reply, Vec<u8>), String>;

fn said(error: faiss::error::Error) -> String {
    match error {
        // without the file and line of FAISS' sources
        faiss::error::Error::Native(native) => {
            let text = native.to_string();
            text.rsplit("Error: ").next().unwrap_or(&text).split_whitespace().collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

fn about(index: &IndexImpl) -> About {
    let metric = format!("{:?}", index.metric_type());
    About { dimensions: index.d(), rows: index.ntotal(), trained: index.is_trained(), metric }
}

fn text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{}: not in UTF-8", path.display()))
}

impl Index {
    /// Answers one request.
    pub fn answer(&mut self, request: &Request, body: &[u8]) -> Answer {
        let done = |()| (Reply::Done, Vec::new());
        match request {
            Request::Open { path } => {
                cap_memory(path)?;
                let index = read_index_with_flags(text(path)?, IoFlags::from(MAPPED)).map_err(said)?;
                Ok((Reply::Ready(about(self.index.insert(index))), Vec::new()))
            }
            Request::Create { dimensions, factory, ef_construction } => {
                let index = index_factory(*dimensions, factory, MetricType::InnerProduct).map_err(said)?;
                if let Some(value) = ef_construction {
                    let space = ParameterSpace::new().map_err(said)?;
                    space.set_index_parameter(&index, "efConstruction", *value).map_err(said)?;
                }
                Ok((Reply::Ready(about(self.index.insert(index))), Vec::new()))
            }
            Request::Sample => {
                let rows = floats(body)?;
                self.whole_rows(&rows)?;
                self.sample.extend(rows);
                Ok(done(()))
            }
            Request::Train => {
                let sample = std::mem::take(&mut self.sample);
                self.index()?.train(&sample).map_err(said).map(done)
            }
            Request::Add => {
                let rows = floats(body)?;
                self.whole_rows(&rows)?;
                self.index()?.add(&rows).map_err(said).map(done)
            }
            Request::Write { path } => write_index(self.index()?, text(path)?).map_err(said).map(done),
            Request::Effort { value } => {
                let index = self.index()?;
                let space = ParameterSpace::new().map_err(said)?;
                let set = |name: &&str| space.set_index_parameter(&*index, name, *value).is_ok();
                let parameter = ["nprobe", "efSearch"].iter().find(|name| set(name)).map(|name| (*name).to_owned());
                Ok((Reply::Tuned { parameter }, Vec::new()))
            }
            Request::Search { k } => {
                let queries = floats(body)?;
                self.whole_rows(&queries)?;
                let found = self.index()?.search(&queries, *k as usize).map_err(said)?;
                let labels: Vec<i64> = found.labels.into_iter().map(Idx::to_native).collect();
                Ok((Reply::Found, to_bytes(&labels, i64::to_le_bytes)))
            }
            Request::Rows { first, count } => {
                let index = self.index()?;
                let end = first.checked_add(*count).filter(|end| *end <= index.ntotal());
                let size = end.and_then(|_| (*count as usize).checked_mul(index.d() as usize));
                let size = size.filter(|size| size * 4 <= s3_faiss::wire::BODY);
                let mut rows = vec![0f32; size.ok_or("rows that are not there were asked for")?];
                index.reconstruct_n(Idx::new(*first), *count as usize, &mut rows).map_err(said)?;
                Ok((Reply::Done, to_bytes(&rows, f32::to_le_bytes)))
            }
        }
    }

    fn index(&mut self) -> Result<&mut IndexImpl, String> {
        self.index.as_mut().ok_or_else(|| "no index is open".to_owned())
    }

    /// FAISS trusts the caller that there is as much as it reads.
    fn whole_rows(&mut self, values: &[f32]) -> Result<(), String> {
        let dimensions = self.index()?.d() as usize;
        let whole = dimensions > 0 && !values.is_empty() && values.len().is_multiple_of(dimensions);
        if whole { Ok(()) } else { Err(format!("{} numbers are no rows of {dimensions}", values.len())) }
    }
}

fn floats(body: &[u8]) -> Result<Vec<f32>, String> {
    from_bytes(body, f32::from_le_bytes).ok_or_else(|| "a part of a number".to_owned())
}
